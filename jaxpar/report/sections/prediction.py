"""A predicted step: how long, between which bounds, what it consists of, what nothing hides."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.figures import bytes_text, place_text, seconds_text
from jaxpar.report.charts import bars, chart
from jaxpar.report.elements import Child, Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

PARTS = {
    "product": "products of matrices",
    "attention": "fused attention",
    "memory": "what touches memory",
    "bubble": "bubble of the pipeline",
    "crowded": "slowed down by collectives",
    "exposed": "collectives that nothing hides",
}
"""What a step consists of, in the order in which it is drawn."""


def parts_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a predicted step by what they are spent on; empty where there are none."""
    if not record.get("work_seconds"):
        return {}
    seconds: dict[str, float] = {
        **record["work_seconds"],
        "crowded": record.get("crowded_seconds") or 0.0,
        "exposed": record.get("exposed_seconds") or 0.0,
    }
    return {PARTS.get(name, name): spent for name, spent in seconds.items() if spent}


def _draw(record: Record) -> list[Element]:
    """A sentence, the parts as a bar, the collectives that are waited for."""
    seconds = record.get("step_seconds")
    if not seconds or not record.get("work_seconds"):
        return []
    low, high = record["low_seconds"], record["high_seconds"]
    tokens = record.get("tokens_per_second_per_device")
    says = [
        f"A step takes {seconds_text(seconds)} ", mark("predicted"),
        f", between {seconds_text(low)} and {seconds_text(high)} in {record['interval']:.0%} of "
        f"cases; {f'{tokens:,.0f} tokens a second and device; ' if tokens else ''}"
        f"MFU {record['mfu']:.1%} ({record['mfu_counts']}). The peak of memory is "
        f"{bytes_text(record['peak_bytes'])} of {bytes_text(record['memory_bytes'] or 0)}: it "
        f"{'fits' if record['fits'] else 'does not fit'}.",
    ]  # fmt: skip
    values = [
        {"name": "a step", "size": spent, "told": seconds_text(spent), "part": part}
        for part, spent in parts_of(record).items()
    ]
    order = [value["part"] for value in values]
    spec = bars(values, unit="seconds", colour="part", order=order)
    parts = [element("p", *says), chart(spec, title="What a step consists of", kind="predicted")]
    return [*parts, *_waited(record)]


def _waited(record: Record) -> list[Element]:
    """A table of the collectives for which a step waits."""
    rows = [
        [one["kind"], " x ".join(one["axes"]), Cell(f"{one['count']:,.0f}", one["count"]),
         Cell(bytes_text(one["bytes"]), one["bytes"]),
         Cell(seconds_text(one["seconds"]), one["seconds"]),
         Cell(seconds_text(one["exposed_seconds"]), one["exposed_seconds"]),
         Cell(_moved(one), class_="why")]
        for one in record.get("exposed") or ()
    ]  # fmt: skip
    columns = [
        Column("collective"), Column("over axes"), Column("count per step", "measured"),
        Column("bytes per device per step", "measured"), Column("takes", "predicted"),
        Column("exposed", "predicted"), Column("what it moves"),
    ]  # fmt: skip
    return [table(columns, rows, title="Collectives that a step waits for")] if rows else []


def _moved(one: Mapping[str, Any]) -> list[Child]:
    """What a collective moves, and the line; nothing in records that do not tell."""
    source = place_text(str(one.get("source") or ""))
    return [str(one.get("what") or ""), " ", element("span", source, class_="quiet")]


section = Section("How long a step takes", 12, _draw)
