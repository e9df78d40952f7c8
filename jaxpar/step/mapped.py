"""What XLA cannot split, or splits wrongly: computed by each device on its own shards.

Fused attention is a call of which XLA knows no dims. Of a grouped convolution the gradient of the
filter is wrong where rows are sharded: only one device's share of it (a plain depthwise convolution
under data parallelism, jax 0.10.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of, entry_of, free_axes
from jaxpar.core.varying import as_varying
from jaxpar.jaxprs.interpreter import bound
from jaxpar.jaxprs.rules import Factors, factors, rule_of
from jaxpar.jaxprs.rules.contract import is_grouped
from jaxpar.layout.record import Layout


def is_mapped(eqn: Any) -> bool:
    """Whether an equation is one of these."""
    return rule_of(eqn).is_opaque or is_grouped(eqn)


def specs_of(layout: Layout, eqn: Any, specs: Sequence[PartitionSpec]) -> list[PartitionSpec]:
    """How an equation's operands, and its results, are sharded while it is computed.

    Args:
        layout: on whose mesh.
        eqn: one that `is_mapped`.
        specs: how each of its operands is sharded; where they disagree the first one is heard.
    """
    fac = factors(eqn)
    split = _split(layout, fac, specs)
    return [_spec(dims, split) for dims in (*fac.operands, *fac.results)]


def on_shards(layout: Layout, eqn: Any, operands, specs: Sequence[PartitionSpec]) -> list[Any]:
    """An equation's results; its operands are sharded as `specs_of` says of `specs`."""
    fac, rule = factors(eqn), rule_of(eqn)
    split = _split(layout, fac, specs)
    axes = frozenset(axis for entry in split.values() for axis in entry)
    summed = tuple(axis for f, _ in fac.reduced for axis in split.get(f, ()))
    inside, results = (
        tuple(_spec(dims, split) for dims in arrays) for arrays in (fac.operands, fac.results)
    )
    sizes = zip(eqn.outvars[0].aval.shape, results[0], strict=True)
    shape = tuple(n // _ways(layout, axes_of(entry)) for n, entry in sizes)

    def here(*shards):
        # What is replicated is used with what differs: its gradient is summed.
        shards = [as_varying(x, axes) for x in shards]
        params = dict(eqn.params)
        if rule.sharding:
            params[rule.sharding] = None
        if rule.on_shard:
            params = rule.on_shard(params, eqn, [x.shape for x in shards], shape)
        made = bound(eqn, shards, params)
        return [lax.psum(x, summed) if summed else x for x in made]

    around = jax.sharding.get_abstract_mesh()
    mesh = around if around.explicit_axes else layout.mesh.abstract
    mapped = jax.shard_map(
        here, mesh=mesh, axis_names=free_axes(mesh), in_specs=inside, out_specs=list(results)
    )
    return mapped(*operands)


def _split(layout: Layout, fac: Factors, specs) -> dict[int, tuple[str, ...]]:
    """Factor of an equation -> the mesh axes over which it is sharded."""
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
