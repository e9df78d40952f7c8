"""Gradient accumulation: microbatches one after another, their gradients summed."""

import jax
import jax.numpy as jnp


def _accumulate(differentiate, microbatches, state, batch, key):
    # Microbatch m takes every microbatches-th row: contiguous rows would move between devices
    # (XLA was seen to insert two all-to-alls for them).
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, microbatches, *x.shape[1:]), 1, 0), batch
    )

    def one(carry, inputs):
        part, index = inputs
        totals, model_state, metrics = carry
        more, model_state, now = differentiate(
            state.parameters, model_state, part, jax.random.fold_in(key, index)
        )
        return (
            jax.tree.map(jnp.add, totals, more),
            model_state,
            jax.tree.map(jnp.add, metrics, now),
        ), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(differentiate, state.parameters, state.model_state, first, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[0], shapes[2]))
    carry = (zeros[0], state.model_state, zeros[1])
    (totals, new, metrics), _ = jax.lax.scan(one, carry, (parts, jnp.arange(microbatches)))
    return totals, new, metrics
