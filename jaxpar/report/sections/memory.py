"""Memory of one device: what fills it, whether it fits, and how it rises and falls over a step."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.figures import bytes_text
from jaxpar.report.charts import axis_of, bars, chart, colours
from jaxpar.report.elements import Child, Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

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
        title = "memory over the schedule of one step"
        drawn.append(chart(_curve(memory), title=title, kind="measured"))
        drawn += [element("p", _loop(loop), class_="quiet") for loop in memory.get("loops", ())[:3]]
    drawn += _largest(memory)
    if own := memory.get("xla_peak_bytes"):
        says = f"XLA's own figure of the peak is {bytes_text(own)} "
        drawn.append(element("p", says, mark("measured"), f", {total / own - 1:+.2%} from this."))
    return drawn


def _fit(memory: Mapping[str, Any], total: float) -> list[Child]:
    """Whether it fits, where that is known."""
    has = memory.get("device_bytes")
    if not has:
        return []
    what = "It fits" if total <= has else "It does not fit"
    share = f" {what}: {total / has:.1%} of the {bytes_text(has)} "
    return [share, mark("quoted"), " that a device has."]


def _curve(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Stacked areas: each point of the curve is a place in the schedule and the bytes of parts."""
    parts = memory.get("curve_parts") or ["bytes"]
    values = [
        {"at": at, "size": size, "part": _words(name), "told": bytes_text(size)}
        for at, *sizes in memory["curve"]
        for name, size in zip(parts, sizes, strict=True)
    ]
    order = [_words(name) for name in parts if any(v["size"] for v in values)]
    return {
        "data": {"values": [v for v in values if v["part"] in order]},
        "height": 240,
        "mark": {"type": "area", "interpolate": "step-after"},
        "encoding": {
            "x": {"field": "at", "type": "quantitative", "title": "place in the schedule"},
            "y": {"field": "size", "type": "quantitative", "stack": "zero",
                  "title": "bytes of one device", "axis": axis_of("bytes")},
            "color": {"field": "part", "type": "nominal", "sort": order,
                      "scale": {"domain": order, "range": list(colours(len(order)))}},
            "tooltip": [{"field": "part"}, {"field": "told", "title": "takes"},
                        {"field": "at", "title": "place"}],
        },
    }  # fmt: skip


def _loop(loop: Mapping[str, Any]) -> str:
    """Which part of the schedule is a loop."""
    return f"Places {loop['begin']:,} to {loop['end']:,} are a loop, run {loop['times']:,} times."


def _largest(memory: Mapping[str, Any]) -> list[Element]:
    """What is there at the peak, by the value and by the module."""
    tables = []
    if memory.get("largest"):
        names = [name for name in memory["largest"][0] if name != "bytes"]
        columns = [*(Column(_words(name)) for name in names), Column("bytes", "measured")]
        rows = [
            [*(str(one.get(name) or "") for name in names), _bytes(one["bytes"])]
            for one in memory["largest"]
        ]
        tables.append(("the largest values at the peak", columns, rows))
    if memory.get("peak_by_module"):
        columns = [Column("module"), Column("bytes", "measured")]
        rows = [[name, _bytes(size)] for name, size in memory["peak_by_module"].items()]
        tables.append(("the peak by module", columns, rows))
    return [
        element("details", element("summary", title), table(columns, rows, title=title))
        for title, columns, rows in tables
    ]


def _bytes(size: float) -> Cell:
    """A cell of bytes."""
    return Cell(bytes_text(size), size)


def _words(name: str) -> str:
    """An entry's name for a person."""
    return name.removesuffix("_bytes").replace("_", " ")


section = Section("Memory of one device", 50, _draw)
