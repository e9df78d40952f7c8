"""Sharding constraints: what XLA's partitioner is given, while it decides about everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.mesh import axes_of
from jaxpar.layout.record import Array, Layout


def constrained(layout: Layout, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x`, sharded as `spec` says on the layout's mesh."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh.abstract, spec))


def sharded_as(layout: Layout, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by path, constrained as the layout's `what` says where they are not stored so.

    Args:
        layout: how they are sharded.
        what: "stored", "gradient" or "optimizer_state", an attribute of the layout's arrays.
        values: path -> array.
    """
    return {
        path: constrained(layout, value, getattr(array, what))
        if array.stored != array.optimizer_state or array.stored != array.gradient
        else value
        for path, value in values.items()
        for array in [layout.parameters[path]]
    }


def landing_as(layout: Layout, what: str, totals: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients as they leave differentiation, sharded as the layout's `what` says.

    A gradient that is sharded finer than its weight is first constrained to be replicated: that
    makes an all-reduce and a slice, which XLA:GPU fuses into a reduce-scatter. Told only of the
    finer sharding, XLA was seen to move an embedding's activations with an all-to-all instead (jax
    0.10.2). Gradients of stacked layers are not: they would be replicated until the end of the
    loop, and the finer sharding reaches into it.
    """
    whole = {
        path: constrained(layout, value, array.used)
        if array.used == array.stored != getattr(array, what) and array.dims[:1] != ("layers",)
        else value
        for path, value in totals.items()
        for array in [layout.parameters[path]]
    }
    return sharded_as(layout, what, whole)


def sharded_further(array: Array, what: str, *, than: str = "stored") -> list[tuple[int, str]]:
    """The dims, and the axes over them (major to minor), along which one of a weight's four
    PartitionSpecs shards and another does not.

    Args:
        array: the weight.
        what, than: attributes of it: "stored", "used", "gradient" or "optimizer_state".
    """
    pairs = zip(getattr(array, what), getattr(array, than), strict=True)
    return [
        (dim, axis)
        for dim, (fine, coarse) in enumerate(pairs)
        for axis in axes_of(fine)
        if axis not in axes_of(coarse)
    ]
