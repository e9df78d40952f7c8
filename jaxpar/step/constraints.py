"""Pins: arrays told where to lie while XLA's partitioner decides about everything else."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.extend.source_info_util import current
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.mesh import axes_of, free_axes
from jaxpar.core.source_lines import line_of
from jaxpar.layout.record import Layout
from jaxpar.spmd.value import varying


@dataclass(frozen=True)
class Dropped:
    """A pin that could not hold: one dim of an array does not divide by the devices it asked for.

    Attributes:
        shape: of the array.
        dim: which of its dims.
        axes: the mesh axes that should have cut it.
        source: the line that made the array.
    """

    shape: tuple[int, ...]
    dim: int
    axes: tuple[str, ...]
    source: str


_dropped: ContextVar[list[Dropped] | None] = ContextVar("dropped", default=None)


@contextmanager
def watching() -> Iterator[list[Dropped]]:
    """While a step is traced: collects the pins that could not hold."""
    found: list[Dropped] = []
    token = _dropped.set(found)
    try:
        yield found
    finally:
        _dropped.reset(token)


def pinned(layout: Layout, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x`, to lie as `spec` says on the layout's mesh; a dim that does not divide stays whole.

    JAX would leave such a dim whole without a word; here it is told to whoever is `watching`.
    """
    entries = []
    for dim, (size, entry) in enumerate(zip(x.shape, spec, strict=False)):
        axes = () if entry is PartitionSpec.UNCONSTRAINED else axes_of(entry)
        if size % prod(layout.mesh.size(axis) for axis in axes):
            if (found := _dropped.get()) is not None:
                found.append(Dropped(tuple(x.shape), dim, axes, line_of(current())))
            entry = None
        entries.append(entry)
    spec = PartitionSpec(*entries)
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh.abstract, spec))


def shared(
    layout: Layout,
    function: Callable[..., jax.Array],
    operands: Sequence[jax.Array],
    dims: Sequence[tuple[str, ...]],
    result_dims: tuple[str, ...],
) -> jax.Array:
    """`function` of the operands, each device on the pieces that it holds.

    Only for a function of whose operands and result no split dim is summed or needed whole.

    Args:
        layout: where arrays with such dims lie.
        function: of arrays, to one array.
        operands: its arguments.
        dims: the names of the dims of each.
        result_dims: those of the result.
    """
    mesh = layout.mesh.abstract
    specs = tuple(map(layout.place_of, dims))
    axes = {axis for spec in specs for entry in spec for axis in axes_of(entry)}

    def here(*pieces):
        # What every device has alike is used with what differs: its gradient is summed.
        missing = [tuple(sorted(axes - varying(x))) for x in pieces]
        pairs = zip(pieces, missing, strict=True)
        return function(*(jax.lax.pcast(x, m, to="varying") if m else x for x, m in pairs))

    return jax.shard_map(
        here,
        mesh=mesh,
        axis_names=free_axes(mesh),
        in_specs=specs,
        out_specs=layout.place_of(result_dims),
    )(*operands)


def lying_as(layout: Layout, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path, pinned as the layout's `what` says where that is not how they are stored.

    Args:
        layout: where they lie.
        what: "stored", "gradient" or "moment", an attribute of the layout's arrays.
        values: path -> array.
    """
    return {
        path: pinned(layout, value, getattr(array, what))
        if array.stored != array.moment or array.stored != array.gradient
        else value
        for path, value in values.items()
        for array in [layout.parameters[path]]
    }


def landing_as(layout: Layout, what: str, totals: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients as they leave differentiation, to lie as the layout's `what` says.

    A gradient that is cut finer than its weight is pinned whole first: that makes an all-reduce
    and a slice, which XLA:GPU fuses into a reduce-scatter. Told only of the cut, XLA was seen to
    move an embedding's activations with an all-to-all instead (jax 0.10.2). Gradients of stacked
    layers are not pinned whole: they would be so until the end of the loop, and the cut reaches
    into it.
    """
    whole = {
        path: pinned(layout, value, array.computed)
        if array.computed == array.stored != getattr(array, what) and array.dims[:1] != ("layers",)
        else value
        for path, value in totals.items()
        for array in [layout.parameters[path]]
    }
    return lying_as(layout, what, whole)
