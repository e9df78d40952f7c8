"""Tables of a page: every column sorts, and says where its numbers come from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxpar.report.elements import Child, Element, element
from jaxpar.report.marks import mark

SHORT = 36
"""Characters of a row's name up to which it stays in one line where there is room."""


@dataclass(frozen=True)
class Cell:
    """What one cell shows, and by what its column is sorted; by its text where that is None."""

    shown: Child
    value: float | None = None
    class_: str | None = None


@dataclass(frozen=True)
class Column:
    """A column's head, and the mark of its numbers; None for words."""

    title: str
    kind: str | None = None


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], *, title: str) -> Element:
    """A table with a caption, a row a sequence of cells or of text.

    Columns with a mark are of figures, and set to the right.
    """
    heads = [
        element(
            "th",
            element("button", column.title, type="button"),
            " " if column.kind else None,
            mark(column.kind) if column.kind else None,
            scope="col",
            class_="figure" if column.kind else None,
        )
        for column in columns
    ]
    body = [
        element(
            "tr",
            [_cell(column, one, first=not at) for at, (column, one) in enumerate(
                zip(columns, row, strict=True))],
        )
        for row in rows
    ]  # fmt: skip
    return element(
        "div",
        element(
            "table",
            element("caption", title),
            element("thead", element("tr", heads)),
            element("tbody", body),
            class_="sorts",
        ),
        class_="wide",
        tabindex="0",
    )


def _cell(column: Column, one: Any, *, first: bool) -> Element:
    """A cell of the body; the first of a row names it."""
    cell = one if isinstance(one, Cell) else Cell(str(one))
    classes = " ".join(filter(None, ("figure" if column.kind else "", cell.class_ or "")))
    value = None if cell.value is None else repr(float(cell.value))
    if first:
        is_short = isinstance(cell.shown, str) and len(cell.shown) <= SHORT
        name = "short" if is_short else None
        return element("th", _breaking(cell.shown), scope="row", class_=name, data_value=value)
    return element("td", cell.shown, class_=classes or None, data_value=value)


def _breaking(shown: Child) -> list[Child]:
    """A row's name, which may go on in a new line after the parts of a layout or a path."""
    if not isinstance(shown, str):
        return [shown]
    parts: list[Child] = []
    for part in re.split(r"(?<=[@,/])", shown):
        parts += [part, element("wbr")]
    return parts[:-1]
