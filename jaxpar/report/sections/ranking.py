"""A search: layouts ranked by predicted time, time against memory, and why the first is first."""

from jaxpar.core.figures import bytes_text, seconds_text
from jaxpar.report.charts import axis_of, bars, chart
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.sections.prediction import parts_of
from jaxpar.report.tables import Cell, Column, table

CHARTED = 20
"""Layouts in the chart of parts: the first; all are in the table."""


def _draw(record: Record) -> list[Element]:
    """Why, the table, time against memory, the parts of each."""
    found = record.get("candidates")
    if not found:
        return []
    made = [one for one in found if "refusal" not in one]
    says = (
        f"{record['considered']:,} layouts of {record['model']} on {record['devices']:,} "
        f"{record['hardware']} were considered, {record['estimated']:,} estimated by formulas, and "
        f"the {len(made)} most promising compiled and predicted."
    )
    why = element("ul", [element("li", sentence) for sentence in record["why"]])
    rows = [
        [
            Cell(one["layout"]), Cell(str(one["rank"]), one["rank"]),
            Cell(seconds_text(one["step_seconds"]), one["step_seconds"]),
            Cell(f"{one['mfu']:.1%}", one["mfu"]),
            Cell(bytes_text(one["peak_bytes"]), one["peak_bytes"]),
            Cell("yes", class_="good") if one["fits"] else Cell("does not fit", class_="bad"),
        ]
        for one in made
    ]  # fmt: skip
    columns = [
        Column("layout"), Column("rank", "predicted"), Column("step", "predicted"),
        Column("MFU", "predicted"), Column("peak memory", "measured"), Column("fits"),
    ]  # fmt: skip
    refused = [
        element("li", element("b", f"{one['count']:,}"), f" as {one['layout']}: {one['reason']}")
        for one in record.get("refused") or ()
    ]
    parts = [element("p", says), why, table(columns, rows, title="Layouts, the fastest first")]
    if made:
        parts += [_front(made), _parts(made[:CHARTED])]
    if refused:
        parts += [element("p", "Refused without compiling:"), element("ul", refused)]
    return parts


def _front(made: list[Record]) -> Element:
    """A point a layout, time against memory; those than which none is better joined."""
    values = [
        {
            "name": one["layout"], "seconds": one["step_seconds"], "size": one["peak_bytes"],
            "told": f"{seconds_text(one['step_seconds'])}, {bytes_text(one['peak_bytes'])}",
            "kind": "none is better" if one.get("on_front") else
                    "fits" if one["fits"] else "does not fit",
        }
        for one in made
    ]  # fmt: skip
    order = ["none is better", "fits", "does not fit"]
    axes = {
        "x": {"field": "size", "type": "quantitative", "title": "bytes of one device at the peak",
              "axis": axis_of("bytes"), "scale": {"zero": False}},
        "y": {"field": "seconds", "type": "quantitative", "title": "seconds of a step",
              "axis": axis_of("seconds"), "scale": {"zero": False}},
    }  # fmt: skip
    spec = {
        "data": {"values": values},
        "height": 260,
        "layer": [
            {"transform": [{"filter": "datum.kind == 'none is better'"}],
             "mark": {"type": "line", "strokeDash": [4, 3], "color": "#888"}, "encoding": axes},
            {"mark": {"type": "point", "filled": True, "size": 70},
             "encoding": {
                 **axes,
                 "color": {"field": "kind", "type": "nominal", "sort": order,
                           "scale": {"domain": order}},
                 "shape": {"field": "kind", "type": "nominal", "sort": order,
                           "scale": {"domain": order}},
                 "tooltip": [{"field": "name", "title": "layout"},
                             {"field": "told", "title": "takes"}],
             }},
        ],
    }  # fmt: skip
    return chart(spec, title="Time of a step against memory", kind="predicted")


def _parts(made: list[Record]) -> Element:
    """A bar a layout, of what its step consists of."""
    values = [
        {"name": one["layout"], "size": spent, "told": seconds_text(spent), "part": part}
        for one in made
        for part, spent in parts_of(one).items()
    ]
    order = list(dict.fromkeys(value["part"] for value in values))
    spec = bars(values, unit="seconds", colour="part", order=order)
    return chart(spec, title="What each step consists of", kind="predicted")


section = Section("The layouts ranked", 15, _draw)
