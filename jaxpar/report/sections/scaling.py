"""A scaling study: the same layout on more and more devices, and where it turns."""

from jaxpar.core.figures import seconds_text
from jaxpar.report.charts import chart
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table


def _draw(record: Record) -> list[Element]:
    """Turning points, efficiency as lines, the table."""
    points = record.get("points")
    if not points or "turning_points" not in record:
        return []
    made = [one for one in points if one.get("efficiency") is not None]
    turning = element("ul", [element("li", sentence) for sentence in record["turning_points"]])
    rows = [
        [
            Cell(one["way"]), Cell(f"{one['devices']:,}", one["devices"]), Cell(one["mesh"]),
            Cell(f"{one['batch']:,}", one["batch"]),
            Cell(seconds_text(one["step_seconds"]), one["step_seconds"]),
            Cell(seconds_text(one["exposed_seconds"]), one["exposed_seconds"]),
            Cell(f"{one['efficiency']:.1%}", one["efficiency"]),
        ]
        for one in made
    ]  # fmt: skip
    columns = [
        Column("scaling"), Column("devices", "quoted"), Column("mesh"), Column("batch", "quoted"),
        Column("step", "predicted"), Column("exposed", "predicted"),
        Column("efficiency", "predicted"),
    ]  # fmt: skip
    return [turning, _lines(made), table(columns, rows, title="One layout on more devices")]


def _lines(made: list[Record]) -> Element:
    """Efficiency over devices, a line for each way of scaling."""
    values = [
        {"way": one["way"], "devices": one["devices"], "share": one["efficiency"],
         "told": seconds_text(one["step_seconds"])}
        for one in made
    ]  # fmt: skip
    spec = {
        "data": {"values": values},
        "height": 240,
        "mark": {"type": "line", "point": True},
        "encoding": {
            "x": {"field": "devices", "type": "quantitative", "title": "devices",
                  "scale": {"type": "log", "base": 2}, "axis": {"format": ",d"}},
            "y": {"field": "share", "type": "quantitative", "title": "efficiency",
                  "axis": {"format": ".0%"}, "scale": {"zero": True}},
            "color": {"field": "way", "type": "nominal", "sort": ["weak", "strong"]},
            "tooltip": [{"field": "way", "title": "scaling"},
                        {"field": "devices", "title": "devices"},
                        {"field": "share", "title": "efficiency", "format": ".1%"},
                        {"field": "told", "title": "step"}],
        },
    }  # fmt: skip
    return chart(spec, title="Rows a second and device, as a share of the fewest", kind="predicted")


section = Section("How it scales", 14, _draw)
