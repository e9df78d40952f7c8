"""Grouped convolutions, each device its own rows and groups.

Left to XLA the gradient of a grouped filter is wrong where rows are sharded: only one device's
share of it (a plain depthwise convolution under data parallelism, jax 0.10.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of, entry_of, free_axes
from jaxpar.jaxprs.interpreter import bound
from jaxpar.jaxprs.rules import Factors, factors, rule_of
from jaxpar.layout.record import Layout
from jaxpar.spmd.value import varying


def specs_of(layout: Layout, eqn: Any, specs: Sequence[PartitionSpec]) -> list[PartitionSpec]:
    """How a convolution's operands, and its result, are sharded while it is computed.

    Args:
        layout: on whose mesh.
        eqn: the convolution.
        specs: how each of its operands is sharded; where they disagree the first one is heard.
    """
    fac = factors(eqn)
    split = _split(layout, fac, specs)
    return [_spec(dims, split) for dims in (*fac.operands, *fac.results)]


def on_shards(layout: Layout, eqn: Any, operands, specs: Sequence[PartitionSpec]) -> jax.Array:
    """A convolution's result; its operands are sharded as `specs_of` says of `specs`."""
    fac = factors(eqn)
    split = _split(layout, fac, specs)
    axes = frozenset(axis for entry in split.values() for axis in entry)
    summed = tuple(axis for f, _ in fac.reduced for axis in split.get(f, ()))
    *inside, result = (_spec(dims, split) for dims in (*fac.operands, *fac.results))
    sizes = zip(eqn.outvars[0].aval.shape, result, strict=True)
    shape = tuple(n // _ways(layout, axes_of(entry)) for n, entry in sizes)

    def here(*shards):
        # What is replicated is used with what differs: its gradient is summed.
        missing = [tuple(sorted(axes - varying(x))) for x in shards]
        pairs = zip(shards, missing, strict=True)
        shards = [lax.pcast(x, m, to="varying") if m else x for x, m in pairs]
        on_shard = rule_of(eqn).on_shard
        assert on_shard is not None
        params = {**eqn.params, "out_sharding": None}
        params = on_shard(params, eqn, [x.shape for x in shards], shape)
        (made,) = bound(eqn, shards, params)
        return lax.psum(made, summed) if summed else made

    around = jax.sharding.get_abstract_mesh()
    mesh = around if around.explicit_axes else layout.mesh.abstract
    mapped = jax.shard_map(
        here, mesh=mesh, axis_names=free_axes(mesh), in_specs=tuple(inside), out_specs=result
    )
    return mapped(*operands)


def _split(layout: Layout, fac: Factors, specs) -> dict[int, tuple[str, ...]]:
    """Factor of a convolution -> the mesh axes over which it is sharded."""
    split: dict[int, tuple[str, ...]] = {}
    for dims, spec in zip(fac.operands, specs, strict=True):
        for (outer, *_), entry in zip(dims, spec, strict=True):
            axes = axes_of(entry)
            taken = {axis for known in split.values() for axis in known}
            if outer in fac.whole or outer in split or taken & set(axes):
                continue
            if axes and fac.sizes[outer] % _ways(layout, axes) == 0:
                split[outer] = axes
    return split


def _spec(dims, split: Mapping[int, tuple[str, ...]]) -> PartitionSpec:
    """The spec of an array whose dims are made of these factors: each is cut by its outermost."""
    return PartitionSpec(*(entry_of(split.get(outer, ())) for outer, *_ in dims))


def _ways(layout: Layout, axes: Sequence[str]) -> int:
    """How many devices these axes span."""
    return prod(layout.mesh.size(axis) for axis in axes)
