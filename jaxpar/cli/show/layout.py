"""A layout on the screen: how every parameter is sharded, and what the dims were found to be."""

import re

from jaxpar.case import Resolved
from jaxpar.cli.screen import Screen
from jaxpar.core.figures import bytes_text
from jaxpar.core.mesh import axes_of
from jaxpar.hardware.record import Hardware
from jaxpar.layout.record import Array, Layout
from jaxpar.measures.dims import dims_of_layout

REPLICATED = "replicated"

LONG = 40
"""Parameters of which each has a row; of more, the layers of a network share theirs."""

_NUMBER = re.compile(r"(?<![^/])\d+(?![^/])")
"""A part of a path that is a number, as those of a list are."""


def show_layout(screen: Screen, layout: Layout, hardware: Hardware, *, whole: bool = True) -> None:
    """Show a layout; not `whole` leaves out the table of its parameters."""
    mesh = layout.mesh
    count = sum(a.size for a in layout.parameters.values())
    screen.say(
        f"{layout.model.name} ({count:,} parameters) under {layout.strategy.name} on {mesh}: "
        f"{_devices(hardware, mesh.devices)}, batch of {layout.model.batch_size}",
        style="bold",
    )
    if whole:
        screen.table(["parameter", "sharding", "bytes per device", "shape"], _rows(layout))
        if any(a.stored != a.used for a in layout.parameters.values()):
            screen.say("* all-gathered for use", style="dim")
    share = layout.parameter_device_bytes / max(1, layout.parameter_bytes)
    screen.say(
        f"parameters: {bytes_text(layout.parameter_bytes)} in all, "
        f"{bytes_text(layout.parameter_device_bytes)} per device ({share:.1%})"
    )
    for note in layout.notes:
        screen.say(f"note: {note}", style="yellow")


def _rows(layout: Layout) -> list[list[str]]:
    """A row a parameter; of many, those of numbered layers that are sharded alike are one row."""
    rows: dict[tuple[str, ...], int] = {}
    is_long = len(layout.parameters) > LONG
    for a in layout.parameters.values():
        path = layout.called(a.path)
        cells = (
            _NUMBER.sub("*", path) if is_long else path,
            _sharding(a),
            bytes_text(a.device_bytes(layout.mesh)),
            " x ".join(map(str, a.shape)),
        )
        rows[cells] = rows.get(cells, 0) + 1
    return [
        [path if count == 1 else f"{path}, {count} of them", *cells]
        for (path, *cells), count in rows.items()
    ]


def compiling(asked: Resolved) -> str:
    """What is said while a case is compiled."""
    return f"compiling for {_devices(asked.hardware, asked.layout.mesh.devices)}"


def show_dims(screen: Screen, layout: Layout) -> None:
    """Show what the dims of a model that nobody annotated were found to be."""
    if not layout.model.named:
        return
    rows = [
        [
            row["name"],
            row["role"],
            f"{row['size']:,}",
            " x ".join(row["axes"]) or REPLICATED,
            _places(row["places"]),
        ]
        for row in dims_of_layout(layout)
    ]
    screen.table(["dim", "role", "size", "sharded over", "found in"], rows)


def _devices(hardware: Hardware, count: int) -> str:
    """What a mesh is made of, such as "8 simulated CPU devices"."""
    kinds = {"local": "local", "described": f"described {hardware.name}"}
    kind = kinds.get(hardware.kind, f"simulated {hardware.name.upper()}")
    return f"{count} {kind} device{'' if count == 1 else 's'}"


def _sharding(array: Array) -> str:
    """Which dims of an array are sharded over which mesh axes, between uses."""
    sharded = [
        f"{dim} over {' x '.join(axes_of(entry))}"
        for dim, entry in zip(array.dims, array.stored, strict=True)
        if entry is not None
    ]
    gathered = " *" if array.stored != array.used else ""
    return (", ".join(sharded) or REPLICATED) + gathered


def _places(places: list[str]) -> str:
    """The first places where a dim was found, and how many more there are."""
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return ", ".join(places[:2]) + more
