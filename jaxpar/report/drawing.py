"""A layout drawn: the mesh with its devices, and every kind of array with who holds which part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxpar.core.figures import bytes_text
from jaxpar.report.elements import Element, element
from jaxpar.report.palette import ink, shard_colour
from jaxpar.report.shards import Placement

DRAWN = 12
"""Kinds of arrays that are drawn, the largest first; all are in the table."""

MOST_CELLS = 8
"""Along one side of a drawing; of more shards the first are drawn, and the last."""


@dataclass(frozen=True)
class Alike:
    """Arrays of one shape that are sharded alike."""

    placement: Placement
    paths: tuple[str, ...]
    bytes: int
    bytes_per_device: int

    @property
    def all_bytes(self) -> int:
        """Of all of them on one device."""
        return self.bytes_per_device * len(self.paths)


def alike(record: Mapping[str, Any]) -> list[Alike]:
    """The arrays of a record in kinds, those with most bytes on a device first."""
    kinds: dict[tuple, list[Mapping[str, Any]]] = {}
    for array in record.get("arrays", ()):
        placement = Placement.of(array, record["mesh"])
        key = (placement.shape, placement.dims, placement.spec, array["bytes"])
        kinds.setdefault(key, []).append(array)
    found = [
        Alike(
            Placement.of(several[0], record["mesh"]),
            tuple(str(one["path"]) for one in several),
            several[0]["bytes"],
            several[0]["bytes_per_device"],
        )
        for several in kinds.values()
    ]
    return sorted(found, key=lambda kind: -kind.all_bytes)


def mesh_drawing(mesh: Mapping[str, int]) -> Element:
    """The devices of a mesh in a table, its last axis across and the others down."""
    large = {axis: size for axis, size in mesh.items() if size > 1} or {"data": 1}
    *outer, last = large
    rows, columns = prod(large[axis] for axis in outer), large[last]
    lines = []
    for row in _shown(rows):
        cells: list[Element] = []
        for column in _shown(columns):
            text = "..." if row is None or column is None else str(row * columns + column)
            cells.append(element("td", text))
        lines.append(element("tr", _head(row, outer, large), cells))
    head = [element("th", "" if column is None else f"{last} {column}")
            for column in _shown(columns)]  # fmt: skip
    sizes = " x ".join(f"{axis}={size}" for axis, size in large.items())
    devices = rows * columns
    what = f"mesh {sizes}: {devices:,} device{'' if devices == 1 else 's'}, by number"
    return element(
        "figure",
        element("figcaption", what),
        element("table", element("tr", element("th", ""), head), lines, class_="mesh"),
        class_="drawn",
    )


def array_drawing(kind: Alike) -> Element:
    """Arrays that are sharded alike, drawn as one: a cell a shard, with the devices that have it.

    Two dims are drawn, sharded ones first; of a third that is sharded only the first shards are.
    """
    placement = kind.placement
    across = _drawn_dims(placement)
    others = {dim: 0 for dim in range(len(placement.shape)) if dim not in across}
    down, right = across
    lines = []
    for row in _shown(1 if down is None else placement.ways(down)):
        cells = []
        for column in _shown(1 if right is None else placement.ways(right)):
            cells.append(_cell(placement, across, others, row, column))
        lines.append(element("tr", cells))
    several = len(kind.paths)
    named = kind.paths[0] if several == 1 else f"{kind.paths[0]} and {several - 1} more"
    return element(
        "figure",
        element("figcaption", element("b", named, title=", ".join(kind.paths[:40])), " ",
                element("span", _sizes(placement), class_="quiet")),
        element(
            "div",
            element("span", _side(placement, down), class_="down") if down is not None else None,
            element("table", lines, class_="shards"),
            class_="box",
        ),
        element("div", _side(placement, right), class_="across") if right is not None else None,
        element("p", _sentence(kind, [d for d in others if placement.ways(d) > 1])),
        class_="drawn",
    )  # fmt: skip


def layout_drawing(record: Mapping[str, Any]) -> list[Element]:
    """The mesh, and every kind of array of a layout's record."""
    kinds = alike(record)
    drawn = [mesh_drawing(record["mesh"]), *map(array_drawing, kinds[:DRAWN])]
    parts = [element("div", drawn, class_="drawings")]
    if left := kinds[DRAWN:]:
        count = sum(len(kind.paths) for kind in left)
        held = sum(kind.all_bytes for kind in left)
        rest = f"and {count} smaller arrays, {bytes_text(held)} on a device"
        parts.append(element("p", rest, class_="quiet"))
    return parts


def _shown(count: int) -> list[int | None]:
    """The places along one side that are drawn; None stands for those left out."""
    if count <= MOST_CELLS:
        return list(range(count))
    return [*range(MOST_CELLS - 2), None, count - 1]


def _head(row: int | None, outer: Sequence[str], sizes: Mapping[str, int]) -> Element:
    """What a row of the mesh is: its place along each of the outer axes."""
    if row is None:
        return element("th", "")
    places = []
    for axis in reversed(outer):
        places.append(f"{axis} {row % sizes[axis]}")
        row //= sizes[axis]
    return element("th", ", ".join(reversed(places)))


def _drawn_dims(placement: Placement) -> tuple[int | None, int | None]:
    """The two dims that are drawn down and across: sharded ones, then the largest."""
    every = range(len(placement.shape))
    wanted = sorted(every, key=lambda d: (-(placement.ways(d) > 1), -placement.shape[d], d))[:2]
    if len(wanted) < 2:
        return None, wanted[0] if wanted else None
    return min(wanted), max(wanted)


def _cell(
    placement: Placement,
    across: tuple[int | None, int | None],
    others: Mapping[int, int],
    row: int | None,
    column: int | None,
) -> Element:
    """One shard: its devices, coloured by its number, with its indices to point at."""
    if row is None or column is None:
        return element("td", "...", class_="gap")
    at = dict(others)
    for dim, place in zip(across, (row, column), strict=True):
        if dim is not None:
            at[dim] = place
    shard = [at[dim] for dim in range(len(placement.shape))]
    colour = shard_colour(placement.number(shard), placement.shards)
    ranges = ", ".join(
        f"{name} {placement.rows(dim, shard[dim])}" for dim, name in enumerate(placement.dims)
    )
    holders = placement.holders_text(shard)
    return element(
        "td",
        holders,
        style=f"background:{colour};color:{ink(colour)}",
        title=f"devices {holders} hold {ranges or 'the value'}",
    )


def _side(placement: Placement, dim: int) -> str:
    """What one side of a drawing is: the dim, its size, and the axes that it is sharded over."""
    axes = [axis for axis in placement.spec[dim] if placement.mesh.get(axis, 1) > 1]
    over = f" over {' x '.join(axes)}" if axes else ""
    return f"{placement.dims[dim]} {placement.shape[dim]:,}{over}"


def _sizes(placement: Placement) -> str:
    """The shape in words."""
    return " x ".join(f"{size:,}" for size in placement.shape) or "scalar"


def _sentence(kind: Alike, undrawn: Sequence[int]) -> str:
    """What each device has of an array, and over which axes it has the same as others."""
    placement = kind.placement
    each = "each " if len(kind.paths) > 1 else ""
    if placement.shards == 1:
        has = f"{each}replicated: every device has all {bytes_text(kind.bytes)}"
    else:
        shape = " x ".join(f"{size:,}" for size in placement.shard_shape)
        has = (
            f"{each}{bytes_text(kind.bytes)}; a device has {shape}, "
            f"{bytes_text(kind.bytes_per_device)}"
        )
        if placement.free_axes:
            has += f"; the same over {' x '.join(placement.free_axes)}"
    if undrawn:
        more = ", ".join(_side(placement, dim) for dim in undrawn)
        has += f". Drawn is the first shard of {more}"
    return has + "."
