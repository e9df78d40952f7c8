"""The layout drawn: which device holds which part of every kind of array."""

from jaxpar.core.figures import bytes_text
from jaxpar.report.drawing import layout_drawing
from jaxpar.report.elements import Element, element
from jaxpar.report.marks import mark
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table

MOST_ROWS = 400
"""Arrays in the table; a network that stacks no layers may have thousands."""


def _draw(record: Record) -> list[Element]:
    """The drawing, and the table of all arrays to open."""
    if not record.get("arrays"):
        return []
    return [
        element(
            "p",
            "A coloured cell is one shard of an array, with the numbers of the devices that have "
            "it. Equal colours in one drawing are the same data. Sizes and bytes are ",
            mark("measured"),
            ".",
        ),
        *layout_drawing(record),
        element("details", element("summary", f"all {len(record['arrays']):,} arrays"),
                _table(record)),
        *(element("p", f"Note: {note}", class_="note") for note in record.get("notes", ())),
    ]  # fmt: skip


def _table(record: Record) -> Element:
    """All arrays, or the largest."""
    arrays = sorted(record["arrays"], key=lambda array: -array["bytes_per_device"])
    columns = [
        Column("array"),
        Column("dims"),
        Column("sharding"),
        Column("bytes", "measured"),
        Column("bytes per device", "measured"),
    ]
    rows = [
        [
            array["path"],
            " x ".join(f"{d} {n:,}" for d, n in zip(array["dims"], array["shape"], strict=True)),
            _sharding(array),
            Cell(bytes_text(array["bytes"]), array["bytes"]),
            Cell(bytes_text(array["bytes_per_device"]), array["bytes_per_device"]),
        ]
        for array in arrays[:MOST_ROWS]
    ]
    more = f", the {MOST_ROWS} largest of {len(arrays):,}" if len(arrays) > MOST_ROWS else ""
    return table(columns, rows, title=f"Arrays of the model{more}")


def _sharding(array: Record) -> str:
    """Which dims are sharded over which axes."""
    pairs = zip(array["dims"], array["spec"], strict=True)
    found = [f"{dim} over {' x '.join(axes)}" for dim, axes in pairs if axes]
    return ", ".join(found) or "replicated"


section = Section("The layout", 30, _draw)
