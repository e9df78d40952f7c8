"""The dims of the model: each with its role, its size, and the axes that it is sharded over."""

from jaxpar.report.elements import Element, element
from jaxpar.report.section import Record, Section
from jaxpar.report.tables import Cell, Column, table


def _draw(record: Record) -> list[Element]:
    """A table to open."""
    dims = record.get("dims")
    if not dims:
        return []
    columns = [Column("dim"), Column("role"), Column("size", "measured"), Column("sharded over"),
               Column("found in"), Column("replicated because")]  # fmt: skip
    rows = [
        [
            dim["name"],
            dim["role"],
            Cell(f"{dim['size']:,}", dim["size"]),
            " x ".join(dim["axes"]) or "replicated",
            _places(dim["places"]),
            dim.get("whole_because") or "",
        ]
        for dim in dims
    ]
    title = f"{len(dims)} dims: what each was found to be"
    return [element("details", element("summary", title), table(columns, rows, title="Dims"))]


def _places(places: list[str]) -> str:
    """The first places, and how many more."""
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return ", ".join(map(str, places[:2])) + more


section = Section("Dims", 35, _draw)
