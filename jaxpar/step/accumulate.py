"""Gradient accumulation: microbatches one after another, their gradients summed."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def accumulated(differentiate: Callable, microbatches: int, parameters, model_state, batch, key):
    """(sums of gradients, new model state, {name: Mean}) of the whole batch.

    Args:
        differentiate: (parameters, model_state, rows, key) -> the same of one microbatch's rows.
        microbatches: how many.
        parameters, model_state, batch, key: of the whole batch.
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
    shapes = jax.eval_shape(differentiate, parameters, model_state, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    carry = (zeros[0], model_state, zeros[1])
    (totals, new, metrics), _ = jax.lax.scan(one, carry, (parts, jnp.arange(microbatches)))
    return totals, new, metrics
