"""Training: its curves over the steps, how fast it went, and what the test split says."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxpar.core.figures import number_text, seconds_text
from jaxpar.report.charts import chart
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

POINTS = 1000
"""Of one curve; of more every n-th is drawn."""

FEW = 80
"""Points of all curves up to which each is shown, and not the line alone."""


def _draw(record: Record) -> list[Element]:
    """Figures in a table, then a chart of each metric, several runs together."""
    runs = list(_runs(record))
    if not runs:
        return []
    parts = [_table(runs)] if any("steps" in run for _, run in runs) else []
    names = dict.fromkeys(name for _, run in runs for name in run.get("curve", {}))
    for name in names:
        several = [(title, run["curve"][name]) for title, run in runs if name in run["curve"]]
        if max(len(curve) for _, curve in several) < 2:
            continue  # one point is in the table
        parts.append(chart(_spec(name, several), title=f"{_words(name)} of each step",
                           kind="measured"))  # fmt: skip
    for title, run in runs:
        notes = run.get("notes") or ()
        parts += [element("p", f"Note: {title + ': ' if len(runs) > 1 else ''}{note}",
                          class_="note") for note in notes]  # fmt: skip
    return parts


def _runs(record: Record) -> Iterator[tuple[str, Record]]:
    """Every run of a record, by a name for it."""
    if "steps_per_second" in record or "curve" in record:
        yield str(record.get("strategy", "run")), record
    for row in record.get("rows", ()):
        if "train" in row:
            mesh = row.get("mesh", {})
            sizes = (
                ",".join(f"{a}={n}" for a, n in mesh.items()) if isinstance(mesh, dict) else mesh
            )
            train = row["train"]
            losses = dict(enumerate(train.get("losses", ()), 1))
            yield f"{row['strategy']} {sizes}", {**train, "curve": {"loss": losses}}


def _table(runs: Sequence[tuple[str, Record]]) -> Element:
    """One row a run."""
    test = dict.fromkeys(n for _, run in runs for n in run if n.startswith("test_"))
    rates = ("tokens_per_second", "examples_per_second", "rows_per_second")
    columns = [Column("run"), Column("steps", "measured"), Column("steps per second", "measured"),
               Column("units per second", "measured"), Column("time", "measured"),
               Column("last loss", "measured"),
               *(Column(_words(name), "measured") for name in test)]  # fmt: skip
    rows = []
    for title, run in runs:
        rate = next((run[name] for name in rates if name in run), None)
        numbers = [run.get("steps"), run.get("steps_per_second"), rate]
        rows.append(
            [
                title,
                *map(_number, numbers),
                Cell(seconds_text(run["seconds"]), run["seconds"]) if "seconds" in run else "-",
                _number(run.get("last_loss")),
                *(_number(run.get(name)) for name in test),
            ]
        )
    return table(columns, rows, title="Runs")


def _number(value: Any) -> Cell:
    """A cell of one number."""
    if not isinstance(value, int | float):
        return Cell("-", None)
    return Cell(f"{value:,}" if isinstance(value, int) else number_text(value), value)


def _spec(name: str, several: Sequence[tuple[str, Record]]) -> dict[str, Any]:
    """A line a run; what is no finite number is left out."""
    values = []
    for title, curve in several:
        points = [(int(s), y) for s, y in curve.items() if y is not None and math.isfinite(y)]
        every = max(1, -(-len(points) // POINTS))
        values += [{"step": s, "value": y, "run": title} for s, y in points[::every]]
    place = {
        "x": {"field": "step", "type": "quantitative", "title": "step"},
        "y": {"field": "value", "type": "quantitative", "title": _words(name),
              "scale": {"zero": False}},
        "color": {"field": "run", "type": "nominal",
                  **({"legend": None} if len(several) < 2 else {})},
    }  # fmt: skip
    dashes = {"strokeDash": {"field": "run", "type": "nominal"}} if len(several) > 1 else {}
    tooltip = [{"field": "run"}, {"field": "step"}, {"field": "value", "title": _words(name)}]
    line = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {**place, **dashes}}
    # The pointer need not be on a point: the nearest answers.
    nearest = {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"}
    pointed = {"condition": {"param": "nearest", "empty": False, "value": 1}}
    points = {
        "mark": {"type": "point", "filled": True, "size": 30},
        "params": [{"name": "nearest", "select": nearest}],
        "encoding": {
            **place,
            "opacity": {**pointed, "value": 1 if len(values) <= FEW else 0},
            "tooltip": tooltip,
        },
    }
    return {"data": {"values": values}, "height": 240, "layer": [line, points]}


def _words(name: str) -> str:
    """A metric's name for a person."""
    return name.replace("_", " ")


section = Section("Training", 80, _draw)
