"""What changed between two programs: figures, collectives added and gone, arrays resharded."""

from typing import Any

from jaxpar.core.figures import bytes_text, flops_text, number_text, seconds_text
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table


def amount_text(what: str, value: float | str | None) -> str:
    """A figure in the unit that its name says.

    >>> amount_text("memory per device: batch bytes", 2048), amount_text("devices", None)
    ('2.05 KB', '-')
    """
    if value is None or isinstance(value, str):
        return value or "-"
    if "bytes" in what:
        return bytes_text(value)
    if "FLOPs" in what:
        return flops_text(value)
    if "seconds" in what:
        return seconds_text(value)
    return f"{value:,}" if isinstance(value, int) else number_text(value)


def change_text(before: float | str | None, after: float | str | None) -> str:
    """How much more or less, in percent; of words that they are others.

    >>> change_text(100, 150), change_text(0, 5), change_text(None, 5)
    ('+50.0%', 'new', 'new')
    """
    if isinstance(before, str) or isinstance(after, str):
        return "other"
    if after is None:
        return "gone"
    if not before:
        return "new"
    return f"{after / before - 1:+.1%}"


def _draw(record: Record) -> list[Element]:
    """Three tables for each pair of programs."""
    parts: list[Element] = []
    for pair in record.get("pairs", ()):
        parts.append(element("h3", f"From {pair['before']} to {pair['after']}"))
        if pair["same"]:
            parts.append(element("p", "No difference.", class_="good"))
            continue
        parts.append(_figures(pair))
        if pair["collectives"]:
            parts.append(_collectives(pair))
        if pair["arrays"]:
            columns = [Column("array"), Column("sharded before"), Column("sharded after")]
            rows = [[a["path"], a["before"] or "-", a["after"] or "-"] for a in pair["arrays"]]
            parts.append(table(columns, rows, title="Arrays that are sharded otherwise"))
    return parts


def _figures(pair: Record) -> Element:
    """Every figure, with those that changed in bold."""
    rows = []
    for one in pair["figures"]:
        before, after = one["before"], one["after"]
        least = "least" if before != after else None
        rows.append(
            [
                one["what"],
                Cell(amount_text(one["what"], before), _sorted_by(before)),
                Cell(amount_text(one["what"], after), _sorted_by(after), least),
                Cell(change_text(before, after) if before != after else "-", class_=least),
            ]
        )
    columns = [Column("what"), Column("before", "measured"), Column("after", "measured"),
               Column("change", "measured")]  # fmt: skip
    return table(columns, rows, title="Figures")


def _sorted_by(value: float | str | None) -> float | None:
    """A figure's number; None for words."""
    return None if isinstance(value, str) else value


def _collectives(pair: Record) -> Element:
    """Every kind of collective that is not as before."""
    columns = [Column("collective"), Column("change"), Column("over axes"),
               Column("count before", "measured"), Column("count after", "measured"),
               Column("bytes before", "measured"), Column("bytes after", "measured")]  # fmt: skip
    rows: list[list[Any]] = []
    for one in pair["collectives"]:
        row: list[Any] = [
            f"{one['kind']}{' of ' + one['of'] if one['of'] else ''}",
            one["change"],
            " x ".join(one["axes"]),
        ]
        for name, text in (("count", "{:,}".format), ("bytes", bytes_text)):
            for side in (one["before"], one["after"]):
                row.append(Cell("-") if side is None else Cell(text(side[name]), side[name]))
        rows.append(row)
    return table(columns, rows, title="Collectives added, gone and changed")


section = Section("What changed", 20, _draw)
