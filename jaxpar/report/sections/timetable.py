"""The timetable of a pipeline: which stage passes which microbatch in which tick."""

import re
from collections.abc import Iterator
from typing import Any

from jaxpar.report.charts import chart
from jaxpar.report.elements import Element, element
from jaxpar.report.marks import mark
from jaxpar.report.palette import KINDS
from jaxpar.report.section import Record, Section

MOST_CELLS = 4000
"""Ticks times stages that are drawn; of more the first ticks."""

LABELLED = 40
"""Ticks up to which the number of the microbatch stands in its cell."""


def _draw(record: Record) -> list[Element]:
    """A sentence, and the table as a chart."""
    schedule = record.get("schedule")
    if not schedule:
        return []
    says = (
        f"Schedule {schedule['name']}: {schedule['microbatches']} microbatches through "
        f"{schedule['stages']} stages in {schedule['ticks']} ticks. Stages have nothing to do in "
        f"{schedule['bubble_fraction']:.1%} of their ticks (the bubble fraction), and one keeps "
        f"at most {schedule['peak_in_flight']} microbatches in flight."
    )
    return [
        element("p", says, " ", mark("measured")),
        chart(_spec(schedule), title="what each stage does in each tick", kind="measured"),
    ]


def _cells(schedule: Record) -> Iterator[dict[str, Any]]:
    """Every pass: its stage, its tick, and of which microbatch it is."""
    wide = len(str(schedule["microbatches"] - 1)) + 2
    most = max(1, MOST_CELLS // schedule["stages"])
    for stage, line in enumerate(schedule["table"]):
        cells = line.removeprefix(f"stage {stage} ")
        for tick in range(min(len(cells) // wide, most)):
            cell = cells[tick * wide : (tick + 1) * wide]
            if number := re.search(r"\d+", cell):
                kind = "backward" if "[" in cell else "forward"
                yield {"stage": stage, "tick": tick, "microbatch": int(number[0]), "pass": kind}


def _spec(schedule: Record) -> dict[str, Any]:
    """Rectangles, forward and backward in two colours, numbered where there is room."""
    values = list(_cells(schedule))
    ticks = 1 + max((value["tick"] for value in values), default=0)
    place = {
        "x": {"field": "tick", "type": "ordinal", "title": "tick",
              "axis": {"labelOverlap": True, "labelAngle": 0}},
        "y": {"field": "stage", "type": "ordinal", "title": "stage"},
        "tooltip": [{"field": name} for name in ("stage", "tick", "pass", "microbatch")],
    }  # fmt: skip
    scale = {"domain": ["forward", "backward"], "range": [KINDS[4], KINDS[1]]}
    rect = {
        "mark": {"type": "rect", "stroke": "#ffffff"},
        "encoding": {**place, "color": {"field": "pass", "type": "nominal", "scale": scale}},
    }
    text = {
        "mark": {"type": "text", "fontSize": 11},
        "encoding": {**place, "text": {"field": "microbatch"}},
    }
    return {
        "data": {"values": values},
        "height": max(60, 22 * schedule["stages"]),
        "layer": [rect, text] if ticks <= LABELLED else [rect],
    }


section = Section("Timetable of the pipeline", 70, _draw)
