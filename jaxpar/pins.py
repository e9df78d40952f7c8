"""Pins: arrays told where to lie while XLA's partitioner decides about everything else."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.layout import Layout


def pinned(layout: Layout, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x`, to lie as `spec` says on the layout's mesh."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh.abstract, spec))


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
