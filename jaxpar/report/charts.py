"""Charts in Vega-Lite, which is data: drawn still by vl-convert, and moved by Vega on a page.

vl-convert holds the JavaScript of Vega, Vega-Lite and vega-embed (BSD-3-Clause), so that a page
needs no network. It is the extra `jaxpar[report]`.
"""

import json
import xml.etree.ElementTree as tree
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from jaxpar.core.errors import RequestError, visible
from jaxpar.report.elements import Element, element, raw
from jaxpar.report.marks import mark
from jaxpar.report.palette import KINDS

WIDTH = 660
"""Of a still chart, in pixels; on a page a chart is as wide as it has room."""

LETTER = 6.6
"""Pixels that a letter of a chart takes, on the average of words."""
LONGEST = 46
"""Letters of a name that stand in one line beside a bar."""
LINES = "split(replace(datum.label, /([^,@]+,[^,@]+),/g, '$1,@'), '@')"
"""The name of a layout in several lines, as Vega computes it: its parts, and two axes a line."""

MISSING = 'charts need the extra report: pip install "jaxpar[report]"'

CONFIG = {
    "font": "system-ui, sans-serif",
    "axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
             "labelLimit": 320, "gridColor": "#e4e4e4"},
    "legend": {"labelFontSize": 12, "title": None, "orient": "bottom", "labelLimit": 260,
               "columns": 4},
    "range": {"category": list(KINDS)},
    "view": {"stroke": None},
}  # fmt: skip


def chart(spec: Mapping[str, Any], *, title: str, kind: str) -> Element:
    """A chart that is still to be drawn.

    Args:
        spec: Vega-Lite, its data in it.
        title: what it shows.
        kind: the mark of its numbers.
    """
    whole = {"background": None, "config": CONFIG, "width": WIDTH,
             "autosize": {"type": "fit-x", "contains": "padding"}, **spec}  # fmt: skip
    return element(
        "figure",
        element("figcaption", title, " ", mark(kind)),
        element("div", class_="plot", role="img", aria_label=title),
        raw("script", as_script(_visible(whole)), type="application/json"),
        class_="chart",
    )


def _visible(value: Any) -> Any:
    """The same with every text as a person can see it: an SVG has no control characters."""
    if isinstance(value, Mapping):
        return {name: _visible(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_visible(entry) for entry in value]
    return visible(value) if isinstance(value, str) else value


def as_script(value: Any) -> str:
    """JSON that can stand in a script: nothing in it ends the script or begins markup."""
    text = json.dumps(value, allow_nan=False)
    for letter, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(letter, code)
    return text


def draw(root: Element, *, stays_still: bool) -> None:
    """Put the picture into every chart below an element, in place.

    Args:
        root: what holds the charts.
        stays_still: whether the chart's own description goes: nothing is to move it later.

    Raises:
        RequestError: without the extra `report`.
    """
    for figure in root.iter("figure"):
        script = figure.find("script")
        plot = figure.find("div")
        if figure.get("class") != "chart" or script is None or plot is None:
            continue
        plot.append(_still(script.text or ""))
        if stays_still:
            figure.remove(script)


@cache
def library() -> ModuleType:
    """vl-convert; a RequestError that says how to install it where it is not."""
    try:
        import vl_convert
    except ImportError as error:
        raise RequestError(MISSING) from error
    return vl_convert


@cache
def javascript() -> str:
    """Vega, Vega-Lite and vega-embed as one script."""
    return library().javascript_bundle()


def bars(
    values: Sequence[Mapping[str, Any]],
    *,
    unit: str,
    colour: str,
    order: Sequence[str],
    beside: str = "",
) -> dict[str, Any]:
    """Stacked bars, one for each `name`, of parts with `size` and `told`, coloured by a field.

    Args:
        values: what is drawn.
        unit: of the sizes, the title of their axis.
        colour: the field that tells parts apart.
        order: its values, in the order in which they are stacked.
        beside: a field; parts that differ in it are no sum, and stand below each other.
    """
    names = list(dict.fromkeys(value["name"] for value in values))
    tracks = list(dict.fromkeys(value[beside] for value in values)) if beside else [""]
    longest = max(map(len, names), default=0)
    lines = max(len(name.split("@")) for name in names) if longest > LONGEST else 1
    named = {"ticks": False, "domain": False}
    if longest > LONGEST:
        named |= {"labelExpr": LINES, "labelOffset": -7 * (lines - 1)}
    label = LETTER * min(longest, LONGEST) if len(names) > 1 else 0.0
    legend = {"columns": columns(order, WIDTH - label)}
    return {
        "data": {"values": [{**v, "place": order.index(v[colour])} for v in values]},
        "height": max(26, max(24, 10 * len(tracks) + 8, 15 * lines) * len(names)),
        "usermeta": {"lines": LINES},
        "mark": {"type": "bar", "height": {"band": 0.75}},
        "encoding": {
            "y": {"field": "name", "type": "nominal", "sort": names, "title": None,
                  "axis": named if len(names) > 1 else None},
            **({"yOffset": {"field": beside, "type": "nominal", "sort": tracks}}
               if len(tracks) > 1 else {}),
            "x": {"field": "size", "type": "quantitative", "title": unit,
                  "axis": axis_of(unit), "stack": "zero"},
            "color": {"field": colour, "type": "nominal", "sort": list(order),
                      "legend": legend if len(order) > 1 else None,
                      "scale": {"domain": list(order), "range": list(colours(len(order)))}},
            "order": {"field": "place", "type": "quantitative"},
            "tooltip": [{"field": "name", "title": "of"}, {"field": colour, "title": "part"},
                        {"field": "told", "title": "takes"}],
        },
    }  # fmt: skip


def columns(entries: Iterable[str], room: float) -> int:
    """In how many columns a legend of these entries stands without being cut."""
    widest = LETTER * max(map(len, entries)) + 30
    return max(1, min(4, int(room // widest)))


def axis_of(unit: str) -> dict[str, Any]:
    """The axis of sizes in a unit, its numbers as people write them: 200 ms, 40 GB."""
    short = {"seconds": "s", "bytes": "B"}.get(unit.partition(" ")[0], "")
    value = "format(datum.value, '~s')"
    label = f"datum.value == 0 ? '0' : replace({value}, /([a-zA-Zµ]?)$/, ' $1{short}')"
    return {"labelExpr": label, "tickCount": 6}


def colours(count: int) -> Iterable[str]:
    """As many colours as there are kinds; more kinds than eight share the last."""
    return (KINDS[min(at, len(KINDS) - 1)] for at in range(count))


def _still(spec: str) -> Element:
    """A chart as SVG, its elements named as HTML names them."""
    svg = tree.fromstring(library().vegalite_to_svg(spec))
    for parent in list(svg.iter()):
        for one in parent.findall("*"):
            if "voronoi" in one.get("class", ""):  # where a pointer is nearest: none ever comes
                parent.remove(one)
    for one in svg.iter():
        one.tag = one.tag.rpartition("}")[2]
        for name in list(one.attrib):
            if "}" in name:
                one.set(name.rpartition("}")[2], one.attrib.pop(name))
    return element("div", svg, class_="still")
