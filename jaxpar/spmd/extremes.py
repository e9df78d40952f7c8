"""The largest or smallest along a dim that is sharded, with its gradient.

One device shares the gradient equally among all that are equal to the largest. JAX cannot
differentiate a maximum over devices, and the largest of each shard's largest would share it equally
among shards first; so equals are counted on all of them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def extreme(kind: str, along: tuple[int, ...], axes: tuple[str, ...], x: jax.Array) -> jax.Array:
    """The largest ("max") or smallest ("min") of `x` along dims, and over devices along `axes`."""
    over_devices = lax.pmax if kind == "max" else lax.pmin
    here = jnp.max if kind == "max" else jnp.min
    return over_devices(here(x, axis=along), axes)


@extreme.defjvp
def _derivative(kind, along, axes, primals, tangents):
    """The mean tangent of the elements that are equal to the result."""
    (x,), (moved,) = primals, tangents
    result = extreme(kind, along, axes, x)
    equal = (x == jnp.expand_dims(result, along)).astype(x.dtype)
    count = lax.psum(jnp.sum(equal, axis=along), axes)
    return result, lax.psum(jnp.sum(moved * equal, axis=along), axes) / count
