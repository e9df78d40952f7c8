"""What the record is about: the layout in a sentence, and its few most important figures."""

from collections.abc import Iterator

from jaxpar.core.catalogue import STRATEGIES
from jaxpar.core.figures import bytes_text, flops_text, seconds_text
from jaxpar.report.elements import Child, Element, coded, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section


def _draw(record: Record) -> list[Element]:
    """The figures of an inspected program."""
    if "collectives" not in record or "arrays" not in record:
        return []
    figures = [
        element("div", element("dt", name), element("dd", text, " ", mark(kind) if kind else None))
        for name, text, kind in _figures(record)
    ]
    known = [name for name in str(record["strategy"]).split("+") if name in STRATEGIES.names()]
    says = [[element("b", name), ": ", coded(f"{STRATEGIES.summary(name)} ")] for name in known]
    return [element("p", *says), element("dl", figures, class_="figures")]


def _figures(record: Record) -> Iterator[tuple[str, Child, str | None]]:
    """Names, texts and marks."""
    memory, bound = record.get("memory") or {}, record.get("bounds") or {}
    yield "devices", f"{record['devices']:,} x {record['hardware']}", None
    yield "rows in a batch", f"{record['batch']:,}", "quoted"
    yield "parameters", f"{record['parameters']:,}", "measured"
    total = memory.get("peak_bytes", memory.get("total_bytes"))
    if total is not None:
        yield "memory per device", bytes_text(total), "measured"
    if "device_bytes" in memory:
        yield "a device has", bytes_text(memory["device_bytes"]), "quoted"
    if "bytes_per_step" in record:
        yield "communication per device", bytes_text(record["bytes_per_step"]), "measured"
    if work := record.get("work"):
        yield "FLOPs per device", flops_text(work["flops_per_device_per_step"]), "measured"
    if "step_seconds" in bound:
        yield "a step takes at least", seconds_text(bound["step_seconds"]), "predicted"


section = Section("In short", 10, _draw)
