"""A predicted step over time: what is computed and what is communicated, a track each."""

from typing import Any

from jaxpar.report.charts import chart, colours
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section

TRACKS = {"compute": "computes", "communication": "communicates"}
"""What a track is called, in the order in which they are drawn."""


def _draw(record: Record) -> list[Element]:
    """A sentence on how to read it, and the tracks as a chart."""
    stretches = record.get("timeline")
    if not stretches:
        return []
    says = (
        "One device from the beginning of a step to its end. Above is what it computes; below are "
        "collectives, which cost time only where nothing is computed above them. Point at a "
        "stretch to see what it is; for every single operation, predict --timeline writes a file "
        "for ui.perfetto.dev."
    )
    return [
        element("p", says),
        chart(_spec(stretches), title="a step over time, predicted", kind="predicted"),
    ]


def _spec(stretches: list[list[Any]]) -> dict[str, Any]:
    """Rectangles along time, coloured by what they do."""
    values = [
        {
            "track": TRACKS.get(track, track),
            "does": what,
            "begin": 1e3 * start,
            "end": 1e3 * (start + seconds),
            "takes": f"{1e3 * seconds:.2f} ms from {1e3 * start:.2f} ms on",
            "first": name,
        }
        for track, what, start, seconds, name in stretches
    ]
    found = sorted(dict.fromkeys((value["track"], value["does"]) for value in values), key=_rank)
    does = list(dict.fromkeys(what for _, what in found))
    return {
        "data": {"values": values},
        "height": 54 * len({value["track"] for value in values}),
        "mark": {"type": "rect", "height": {"band": 0.8}},
        "encoding": {
            "x": {"field": "begin", "type": "quantitative", "title": "milliseconds",
                  "scale": {"nice": False}},
            "x2": {"field": "end"},
            "y": {"field": "track", "type": "nominal", "sort": list(TRACKS.values()), "title": None,
                  "axis": {"ticks": False, "domain": False}},
            "color": {"field": "does", "type": "nominal", "sort": does,
                      "scale": {"domain": does, "range": list(colours(len(does)))}},
            "tooltip": [{"field": "does", "title": "does"}, {"field": "takes", "title": "takes"},
                        {"field": "first", "title": "first of it"}],
        },
    }  # fmt: skip


def _rank(pair: tuple[str, str]) -> tuple[int, str]:
    """What is computed before what is communicated, each in the order of a step."""
    track, what = pair
    order = ("forward", "backward", "backward, recomputed", "update")
    if track == TRACKS["compute"] and what in order:
        return order.index(what), ""
    return len(order), what


section = Section("A step over time", 14, _draw)
