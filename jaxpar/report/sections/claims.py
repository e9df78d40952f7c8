"""What an experiment claims and whether it holds, and its rows in one table."""

from collections.abc import Mapping
from typing import Any

from jaxpar.core.figures import bytes_text, number_text
from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

SHOWN = {
    "batch": "rows in a batch",
    "parameter_bytes_per_device": "parameter bytes per device",
    "inspect.bytes_per_step": "communication per device per step",
    "inspect.memory.total_bytes": "memory per device",
    "train.last_loss": "last loss",
    "train.test_accuracy": "test accuracy",
    "verify.max_relative_error": "relative error",
}
"""Entries of a row that a table shows, where any row has them."""


def _draw(record: Record) -> list[Element]:
    """A list of claims, then the rows."""
    parts = []
    if record.get("claims"):
        items = [
            element("li", element("b", "holds" if c["holds"] else "FAILS"), f": {c['claim']}",
                    class_="good" if c["holds"] else "bad")
            for c in record["claims"]
        ]  # fmt: skip
        parts.append(element("ul", items, class_="claims"))
    rows = [row for row in record.get("rows", ()) if "strategy" in row]
    return [*parts, _table(rows)] if rows else parts


def _table(rows: list[Mapping[str, Any]]) -> Element:
    """One row a case."""
    there = [name for name in SHOWN if any(_entry(row, name) is not None for row in rows)]
    columns = [
        Column("case"),
        Column("devices", "quoted"),
        *(Column(SHOWN[name], "measured") for name in there),
    ]
    cells = [
        [
            _name(row),
            _cell("devices", row.get("devices")),
            *(_cell(name, _entry(row, name)) for name in there),
        ]
        for row in rows
    ]
    return table(columns, cells, title="Cases of the experiment")


def _name(row: Mapping[str, Any]) -> str:
    """A case in words."""
    mesh = row.get("mesh")
    sizes = ",".join(f"{a}={n}" for a, n in mesh.items()) if isinstance(mesh, Mapping) else mesh
    return f"{row['model']} {row['strategy']} {sizes or ''}".rstrip()


def _entry(row: Mapping[str, Any], dotted: str) -> Any:
    """What a dotted name reaches, or None."""
    value: Any = row
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _cell(name: str, value: Any) -> Cell:
    """A number with its unit."""
    if not isinstance(value, int | float):
        return Cell("-")
    if "bytes" in name:
        return Cell(bytes_text(value), value)
    return Cell(f"{value:,}" if isinstance(value, int) else number_text(value), value)


section = Section("What is claimed, and what was found", 15, _draw)
