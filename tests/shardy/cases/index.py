"""Cases of what reads and writes at computed places."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from shardy.cases.arguments import ints


def _scattered(how, **more):
    return lambda x, i, u: getattr(x.at[i], how)(u, **more)


def _at_rows(x, i, u):
    return jax.vmap(lambda x, i, u: x.at[i].add(u))(x, i, u)


CASES = {
    "embedding": (lambda t, i: t[i], (8, 4), ints(2, 3)),
    "embedding filled": (lambda t, i: jnp.take(t, i, 0), (8, 4), ints(2, 3)),
    "embedding clipped": (lambda t, i: jnp.take(t, i, 0, mode="clip"), (8, 4), ints(3)),
    "embedding along dim 1": (lambda t, i: jnp.take(t, i, 1), (4, 8), ints(2, 3)),
    "one row": (lambda t, i: t[i], (8, 4), ints()),
    "two coordinates": (lambda t, i, j: t[i, :, j], (8, 4, 6), ints(3), ints(3)),
    "along an axis": (lambda x, i: jnp.take_along_axis(x, i, -1), (2, 3, 8), ints(2, 3, 1)),
    "along the first axis": (lambda x, i: jnp.take_along_axis(x, i, 0), (8, 3), ints(5, 3)),
    "rows of batches": (jax.vmap(lambda t, i: t[i]), (2, 8, 4), ints(2, 3)),
    "slices": (
        jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4)), (None, 0)),
        (8, 4),
        ints(3),
    ),
    "slices of batches": (
        jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4))),
        (3, 8, 4),
        ints(3),
    ),
    "slices of one row": (
        jax.vmap(lambda x, i: lax.dynamic_slice(x, (i, 0), (1, 4)), (None, 0)),
        (8, 4),
        ints(3),
    ),
    "a search": (jnp.searchsorted, (8,), (4, 6)),
    "gradient of an embedding": (
        lambda t, i: jax.grad(lambda t: jnp.sin(t[i]).sum())(t),
        (8, 4),
        ints(2, 3),
    ),
    "gradient along an axis": (
        lambda x, i: jax.grad(lambda x: jnp.sin(jnp.take_along_axis(x, i, -1)).sum())(x),
        (2, 3, 8),
        ints(2, 3, 1),
    ),
    "gradient of slices": (
        lambda x, i: jax.grad(
            lambda x: jnp.sin(jax.vmap(lambda i: lax.dynamic_slice(x, (i, 0), (2, 4)))(i)).sum()
        )(x),
        (8, 4),
        ints(3),
    ),
    **{
        f"scatter {how}": (_scattered(how), (8, 4), ints(3), (3, 4))
        for how in ("set", "add", "subtract", "multiply", "max", "min")
    },
    "scatter to unique places": (_scattered("set", unique_indices=True), (8, 4), ints(3), (3, 4)),
    "scatter one row": (_scattered("add"), (8, 4), ints(), (4,)),
    "scatter to batches": (_at_rows, (2, 8, 4), ints(2, 3), (2, 3, 4)),
    "scatter in two coordinates": (
        lambda x, i, j, u: x.at[i, :, j].add(u),
        (8, 4, 6),
        ints(3),
        ints(3),
        (3, 4),
    ),
    "scatter a part": (lambda x, i, u: x.at[i, :2].set(u), (8, 4), ints(3), (3, 2)),
    "dynamic slice": (lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4)), (8, 4), ints()),
    "dynamic slice of all": (lambda x, i: lax.dynamic_slice(x, (i, 0), (8, 4)), (8, 4), ints()),
    "dynamic update": (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 0)),
        (8, 4),
        (2, 4),
        ints(),
    ),
}
