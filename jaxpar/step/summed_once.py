"""Gradients that are summed over devices once a step, where XLA's partitioner would sum too often.

It sums a gradient as soon as it is made: once a microbatch, and over all axes of the rows at once
where a weight is sharded along one of them. So each share of the rows is differentiated apart, its
microbatches accumulated, and the shares are summed at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of
from jaxpar.step.accumulate import accumulated
from jaxpar.step.constraints import constrained, landing_as
from jaxpar.step.modes.record import Asked
from jaxpar.step.shares import for_each_share, one_share, scatters


def summed_by_us(asked: Asked) -> tuple[str, ...]:
    """The axes over which gradients are better summed once, at the end; () where they cannot be.

    Those of the rows along which neither weights nor their gradients are sharded, with several
    microbatches, or where gradients are scattered over another axis of the rows. The loss has to be
    one of parts of a batch: microbatches are held to that, and so are models that say what their
    means weigh. It may neither draw random numbers, which would be other ones in each share, nor
    change its state. A ring of devices in attention is mapped already, and is not mapped again.
    """
    layout = asked.layout
    if layout.exchange:
        return ()
    rows = {spec[0] for spec in layout.batch.values()}
    if len(rows) != 1:
        return ()
    rows = {axis for axis in axes_of(rows.pop()) if layout.mesh.size(axis) > 1}
    arrays = [*layout.parameters.values(), *layout.state.values()]
    sharded = rows & _axes(spec for a in arrays for spec in (a.stored, a.gradient))
    scattered = sharded - _axes(a.used for a in arrays)
    axes = tuple(axis for axis in layout.mesh.axes if axis in rows - sharded)
    too_often = asked.microbatches > 1 or (scattered and not layout.model.units)
    if not axes or not too_often or asked.loss.draws or asked.loss.changes_state:
        return ()
    return axes


def _axes(specs: Iterable[PartitionSpec]) -> set[str]:
    """All mesh axes of some PartitionSpecs."""
    return {axis for spec in specs for entry in spec for axis in axes_of(entry)}


def summed_once(
    asked: Asked, axes: tuple[str, ...], differentiate: Callable[[Asked], Callable[..., Any]]
) -> Callable[..., Any]:
    """The gradients of the whole batch, as `Differentiated` has them.

    Args:
        asked: the whole batch's.
        axes: from `summed_by_us`.
        differentiate: makes the gradients of one microbatch.
    """
    layout = asked.layout
    share = replace(asked, layout=one_share(layout, axes))
    gradients = partial(differentiate(share), "gradient")
    if asked.microbatches > 1:
        gradients = partial(accumulated, gradients, asked.microbatches)

    def of_a_share(batch, shared):
        parameters, model_state, key = shared
        totals, _, means = gradients(parameters, model_state, batch, key)
        return totals, means

    def of_all(lands, parameters, model_state, batch, key):
        mapped = for_each_share(layout, axes, of_a_share, by_vmap=scatters(asked.loss))
        shares, means = mapped(dict(batch), (parameters, model_state, key))
        totals = {path: _sum(layout, axes, path, value) for path, value in shares.items()}
        means = jax.tree.map(partial(jnp.sum, axis=0), means)
        return landing_as(layout, lands, totals), model_state, means

    return of_all


def _sum(layout, axes: tuple[str, ...], path: str, shares: jax.Array) -> jax.Array:
    """The sum of a gradient's shares, each of them sharded as the layout keeps gradients."""
    spec = PartitionSpec(axes, *layout.parameters[path].gradient)
    return jnp.sum(constrained(layout, shares, spec), axis=0)
