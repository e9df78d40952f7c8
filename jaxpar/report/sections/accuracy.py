"""Predicted against measured: a point a run, on the diagonal if the prediction is right."""

from jaxpar.core.figures import seconds_text
from jaxpar.report.charts import chart
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section


def _draw(record: Record) -> list[Element]:
    """A chart of the rows that have a measured time, and the remarks."""
    values = [
        {
            "name": row["published"], "source": row["source"],
            "measured": row["measured_seconds"], "predicted": row["predict"]["step_seconds"],
            "told": f"{seconds_text(row['predict']['step_seconds'])} predicted, "
                    f"{seconds_text(row['measured_seconds'])} measured, {row['error']:+.1%}",
        }
        for row in record.get("rows") or ()
        if row.get("measured_seconds") and row.get("predict")
    ]  # fmt: skip
    if not values:
        return []
    least = min(min(v["measured"], v["predicted"]) for v in values)
    most = max(max(v["measured"], v["predicted"]) for v in values)
    scale = {"type": "log", "domain": [0.8 * least, 1.25 * most]}
    ends = [{"measured": end, "predicted": end} for end in scale["domain"]]

    def axis(name: str) -> dict:
        return {"field": name, "type": "quantitative", "title": f"{name}, seconds of a step",
                "scale": scale}  # fmt: skip

    line = {"type": "line", "color": "#888", "strokeDash": [4, 3]}
    spec = {
        "height": 360,
        "layer": [
            {"data": {"values": ends}, "mark": line,
             "encoding": {"x": axis("measured"), "y": axis("predicted")}},
            {"data": {"values": values}, "mark": {"type": "point", "filled": True, "size": 60},
             "encoding": {
                 "x": axis("measured"), "y": axis("predicted"),
                 "color": {"field": "source", "type": "nominal"},
                 "shape": {"field": "source", "type": "nominal"},
                 "tooltip": [{"field": "name", "title": "run"}, {"field": "told", "title": "step"}],
             }},
        ],
    }  # fmt: skip
    said = [element("li", remark) for remark in record.get("remarks") or ()]
    parts = [chart(spec, title="Predicted against measured", kind="predicted")]
    return [*parts, element("ul", said)] if said else parts


section = Section("How far predictions are off", 13, _draw)
