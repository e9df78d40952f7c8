"""Memory of one device: what fills it, whether it fits, and how it rises and falls over a step."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.figures import bytes_text
from jaxpar.report.charts import bars, chart
from jaxpar.report.elements import Child, Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section

PARTS = {
    "parameters_bytes": "parameters",
    "optimizer_state_bytes": "optimizer state",
    "model_state_bytes": "model state",
    "batch_bytes": "batch",
    "temporary_bytes": "temporary",
}
"""Entries of a record that make up the whole."""


def parts_of(memory: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of each part that there is, by its name for a person."""
    told = memory.get("parts") or {name: memory.get(key) for key, name in PARTS.items()}
    return {_words(name): size for name, size in told.items() if size}


def capacity(bytes_: float) -> dict[str, Any]:
    """A line in a chart of bytes where a device is full."""
    return {
        "data": {"values": [{"size": bytes_, "told": bytes_text(bytes_), "part": "device has"}]},
        "mark": {"type": "rule", "strokeDash": [5, 4], "strokeWidth": 2, "color": "#000000"},
        "encoding": {
            "x": {"field": "size", "type": "quantitative"},
            "tooltip": [{"field": "told", "title": "one device has"}],
        },
    }


def _draw(record: Record) -> list[Element]:
    """A bar of the parts, the curve if there is one, and a sentence on whether it fits."""
    memory = record.get("memory") or {}
    parts = parts_of(memory)
    if not parts:
        return []
    total = memory.get("peak_bytes", memory.get("total_bytes", sum(parts.values())))
    told = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
    drawn = [element("p", f"One device needs {bytes_text(total)}: {told} ", mark("measured"), ".",
                     *_fit(memory, total))]  # fmt: skip
    values = [
        {"name": "one device", "size": size, "told": bytes_text(size), "part": name}
        for name, size in parts.items()
    ]
    spec = bars(values, unit="bytes of one device", colour="part", order=list(parts))
    drawn.append(chart(spec, title="what fills the memory of one device", kind="measured"))
    if memory.get("curve"):
        drawn.append(chart(_curve(memory["curve"]), title="memory over the schedule of one step",
                           kind="measured"))  # fmt: skip
    return drawn


def _fit(memory: Mapping[str, Any], total: float) -> list[Child]:
    """Whether it fits, where that is known."""
    has = memory.get("device_bytes")
    if not has:
        return []
    what = "It fits" if total <= has else "It does not fit"
    share = f" {what}: {total / has:.1%} of the {bytes_text(has)} "
    return [share, mark("quoted"), " that a device has."]


def _curve(curve: Any) -> dict[str, Any]:
    """Stacked areas over places in the schedule.

    A point is bytes alone, or a mapping of names to bytes whose `at` is its place.
    """
    values = []
    for number, point in enumerate(curve):
        named = dict(point) if isinstance(point, Mapping) else {"bytes": point}
        at = named.pop("at", number)
        values += [
            {"at": at, "size": size, "part": _words(name), "told": bytes_text(size)}
            for name, size in named.items()
            if isinstance(size, int | float)
        ]
    return {
        "data": {"values": values},
        "height": 240,
        "mark": {"type": "area", "interpolate": "step-after", "tooltip": True},
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": "place in the schedule"},
            "y": {"field": "size", "type": "quantitative", "stack": "zero",
                  "title": "bytes of one device", "axis": {"format": "~s"}},
            "color": {"field": "part", "type": "nominal"},
            "tooltip": [{"field": "at", "title": "place"}, {"field": "part"}, {"field": "told",
                        "title": "takes"}],
        },
    }  # fmt: skip


def _words(name: str) -> str:
    """An entry's name for a person."""
    return name.removesuffix("_bytes").replace("_", " ")


section = Section("Memory of one device", 50, _draw)
