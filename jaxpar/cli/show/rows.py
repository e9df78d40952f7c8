"""An experiment's rows on the screen: chosen entries of each, and what it communicates."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar.cli.screen import Screen
from jaxpar.core.figures import entry_text
from jaxpar.core.mesh import AXES
from jaxpar.experiment import Row, communication_bytes


def show_rows(screen: Screen, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Show a table of the entries that `columns` names; dots reach into records.

    `communication.all` and `communication.AXIS` are the bytes of collectives per device per step.
    """
    shown = [{"communication": _communication(row), **row} for row in rows]
    cells = [[entry_text(c, _entry(row, c)) for c in columns] for row in shown]
    screen.table([_head(c) for c in columns], cells)


def _communication(row: Row) -> dict[str, float]:
    """Bytes in collectives of an inspected row, over all mesh axes and over each."""
    if "inspect" not in row:
        return {}
    over = {axis: communication_bytes(row, axis=axis) for axis in AXES}
    return {"all": communication_bytes(row), **over}


def _entry(row: Mapping[str, Any], column: str) -> Any:
    """What a dotted name reaches in nested records, or None."""
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _head(column: str) -> str:
    """A column's name in words."""
    if column == "communication.all":
        return "bytes per device per step"
    record, _, name = column.rpartition(".")
    if record == "communication":
        return f"bytes over {name} per device per step"
    return name.replace("_", " ")
