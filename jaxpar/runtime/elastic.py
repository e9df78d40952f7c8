"""A run that goes on with the devices that are left: the nearest mesh that its layout can have."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.models.record import Model
from jaxpar.program.shares import device_share
from jaxpar.strategies.record import Strategy

ROWS = ("replica", "data")
"""Axes that may have any size that divides the batch; others keep theirs, or a divisor of it."""

MOST_TRIED = 200
"""Meshes that are laid out before it is given up."""


@dataclass(frozen=True)
class Fitted:
    """A layout on fewer devices, or more, and in how many microbatches its batch is computed."""

    layout: Layout
    microbatches: int


def nearest(
    model: Model,
    strategy: Strategy,
    before: MeshShape,
    microbatches: int,
    devices: int,
    processes: int = 1,
) -> Fitted:
    """The layout of a run on as many as it can use of so many devices.

    Of meshes that use as many, the one that changes the network's own axes least. The global batch
    stays what it is: a device has as many rows at a time as before, or fewer, by accumulation.

    Args:
        model, strategy: of the run; the model has the run's batch.
        before: the mesh that the run had.
        microbatches: that it had.
        devices: that there are now.
        processes: that share them out evenly.

    Raises:
        RequestError: when no mesh of so many devices, or fewer, is legal.
    """
    for mesh in _meshes(model, before, devices):
        try:
            device_share(mesh, processes)
            layout = lay_out(model, strategy=strategy, mesh=mesh)
        except RequestError:
            continue
        shares = _shares(model, strategy, before)
        return Fitted(layout, _accumulated(model.batch_size, layout, shares * microbatches))
    shared = f", shared out over {processes} processes," if processes > 1 else ""
    raise RequestError(
        f"the run had mesh {before}, and no mesh of {devices} devices or fewer{shared} can have "
        f"its strategy '{strategy.name}' with a batch of {model.batch_size}: say a --mesh, or "
        "another --strategy"
    )


def _meshes(model: Model, before: MeshShape, devices: int) -> Iterator[MeshShape]:
    """Meshes of the run's axes and at most so many devices, the nearest to what it had first."""
    axes = [axis for axis, size in before.sizes if size > 1 or axis == "data"]
    choices = [_sizes(axis, before.size(axis), model.batch_size, devices) for axis in axes]
    found = [sizes for sizes in product(*choices) if prod(sizes) <= devices]

    def far(sizes: tuple[int, ...]) -> tuple:
        own = {axis: size for axis, size in zip(axes, sizes, strict=True)}
        inner = sum(own[a] != before.size(a) for a in own if a not in ROWS)
        outer = sum(abs(own[a] - before.size(a)) for a in own)
        return (-prod(sizes), inner, outer)

    for sizes in sorted(found, key=far)[:MOST_TRIED]:
        yield MeshShape(**dict(zip(axes, sizes, strict=True)))


def _sizes(axis: str, before: int, rows: int, devices: int) -> list[int]:
    """Sizes that an axis may have."""
    divided = rows if axis in ROWS else before
    return [n for n in range(1, min(divided, devices) + 1) if divided % n == 0]


def _shares(model: Model, strategy: Strategy, mesh: MeshShape) -> int:
    """Among how many devices the rows of the run's batches were shared."""
    return lay_out(model, strategy=strategy, mesh=mesh).row_shares


def _accumulated(rows: int, layout: Layout, parts: int) -> int:
    """The fewest microbatches with which a device has no more rows at a time than `parts` say."""
    shares = layout.row_shares
    least = max(1, ceil(parts / shares))
    return next((m for m in range(least, rows + 1) if rows % (m * shares) == 0), rows // shares)
