"""Gradient accumulation: microbatches one after another, their gradients summed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxpar.core.jax_compat import varying_axes
from jaxpar.core.varying import as_varying


def accumulated(differentiate: Callable, microbatches: int, parameters, model_state, batch, key):
    """(sums of gradients, new model state, {name: Mean}) of the whole batch.

    Args:
        differentiate: (parameters, model_state, rows, key) -> the same of one microbatch's rows.
        microbatches: how many.
        parameters, model_state, batch, key: of the whole batch, or of a device's share of it.
    """
    # Microbatch m takes every microbatches-th row: contiguous rows would move between devices
    # (XLA was seen to insert two all-to-alls for them).
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch
    )

    def one(carry, inputs):
        part, index = inputs
        totals, state, metrics = carry
        more, state, now = differentiate(parameters, state, part, jax.random.fold_in(key, index))
        return (jax.tree.map(jnp.add, totals, more), state, jax.tree.map(jnp.add, metrics, now)), ()

    first = jax.tree.map(lambda x: x[0], parts)
    trace = jax.make_jaxpr(differentiate, return_shape=True)
    closed, shapes = trace(parameters, model_state, first, key)
    # Zeros that may differ between the devices along which what is added to them does.
    zeros = [as_varying(jnp.zeros(a.shape, a.dtype), varying_axes(a)) for a in closed.out_avals]
    zeros = jax.tree.unflatten(jax.tree.structure(shapes), zeros)
    carry = (zeros[0], model_state, zeros[2])
    (totals, new, metrics), _ = jax.lax.scan(one, carry, (parts, jnp.arange(microbatches)))
    return totals, new, metrics
