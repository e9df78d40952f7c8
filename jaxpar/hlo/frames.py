"""The stack frames of a compiled program's text: tables at its top, known by number below.

Text in, frozen records out. A table that refers to what is not there raises ValueError.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from jaxpar.core.errors import one_line


@dataclass(frozen=True)
class Frame:
    """One line of the user's traceback at the moment the operation was traced."""

    file: str
    line: int
    function: str


_NAMED = re.compile(r'(\d+) "(.*)"$')
_PLACED = re.compile(r"(\d+) \{(.*)\}$")
_FIELD = re.compile(r"\b(\w+)=(\d+)")
_TABLES = {
    "FileNames": _NAMED,
    "FunctionNames": _NAMED,
    "FileLocations": _PLACED,
    "StackFrames": _PLACED,
}


@dataclass(frozen=True)
class Tables:
    """The tables of files, functions, lines and frames, row by row; `read` adds one line of them.

    Attributes:
        rows: table -> number -> a name, or numbers by name.
    """

    rows: dict[str, dict[int, Any]] = field(default_factory=lambda: {name: {} for name in _TABLES})

    def read(self, table: str, line: str) -> None:
        """Take one row of a table; ValueError for one that is none."""
        match = _TABLES[table].match(line)
        if match is None:
            raise ValueError(f"no row of the table {table}")
        held = match[2]
        if _TABLES[table] is _PLACED:
            held = {key: int(value) for key, value in _FIELD.findall(match[2])}
        self.rows[table][int(match[1])] = held

    def frames(self, frame_id: int) -> tuple[Frame, ...]:
        """The user's traceback with this id, innermost frame first; empty for an unknown id."""
        found, seen = [], set()
        while frame_id in self.rows["StackFrames"]:
            if frame_id in seen:
                raise ValueError(f"stack frame {frame_id} is its own parent")
            seen.add(frame_id)
            frame = self.rows["StackFrames"][frame_id]
            at = self._row("FileLocations", frame, "file_location_id")
            file = self._row("FileNames", at, "file_name_id")
            function = self._row("FunctionNames", at, "function_name_id")
            found.append(Frame(file, _entry(at, "line"), function))
            # The printer adds one to a parent's id, so a frame without a parent shows 1.
            frame_id = _entry(frame, "parent_frame_id") - 1
        return tuple(found)

    def _row(self, table: str, referring: dict[str, int], key: str) -> Any:
        """The row of a table that another row names; ValueError where there is none."""
        number = _entry(referring, key)
        if number not in self.rows[table]:
            raise ValueError(one_line(f"{key}={number}, and the table {table} has no such row"))
        return self.rows[table][number]


def _entry(row: dict[str, int], key: str) -> int:
    """A number of a row; ValueError where the row is without it."""
    if key not in row:
        raise ValueError(f"a row of a stack frame without {key}")
    return row[key]


def frames_of(text: str, frame_id: int) -> tuple[Frame, ...]:
    """Return the lines, innermost first, that a module's text knows by this number."""
    tables, table = Tables(), None
    for line in text.split("\n"):
        table = table_at(line, table)
        if table and line and line != table:
            tables.read(table, line)
        elif line.startswith(("%", "ENTRY ")):
            break
    return tables.frames(frame_id)


def table_at(line: str, before: str | None) -> str | None:
    """The table that a line is in, its name or a row of it; None where it is in none.

    Args:
        line: what is read.
        before: the table of the line above.
    """
    if line in _TABLES:
        return line
    return before if line[:1].isdigit() or not line else None
