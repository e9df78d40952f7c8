"""Cases of what moves, cuts, merges and joins dims."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax


def _reshape(before, after):
    return (lambda x: lax.reshape(x, after), before)


RESHAPE = {
    f"reshape {before} {after}".replace(",", ""): _reshape(before, after)
    for before, after in (
        ((2, 3, 5), (6, 5)),
        ((6, 5), (2, 3, 5)),
        ((4, 6), (24,)),
        ((24,), (2, 3, 4)),
        ((4, 6), (8, 3)),
        ((4, 6), (2, 12)),
        ((2, 1, 3), (2, 3)),
        ((4, 6), (4, 1, 6)),
        ((8, 6, 4, 5), (8, 4, 6, 5)),
        ((6, 4), (4, 6)),
        ((4, 6), (6, 4)),
        ((3, 4, 5), (4, 15)),
        ((12, 10), (8, 15)),
        ((2, 3, 4), (2, 2, 6)),
        ((7, 4), (28, 1)),
        ((8, 6, 4), (32, 6)),
        ((6, 4, 7, 6, 4), (4, 6, 7, 4, 6)),
        ((12, 5, 8), (8, 5, 12)),
        ((9, 4), (6, 6)),
        ((5, 7), (7, 5)),
        ((2, 9, 5), (6, 15)),
    )
}


def _reshape_transposed(x):
    return lax.reshape(x, (6, 20), (2, 0, 3, 1))


_PADDED = ((0, 0, 0), (1, 2, 0), (0, 0, 1), (-1, 0, 0), (1, -1, 0))
CASES = {
    **RESHAPE,
    "reshape in another order": (_reshape_transposed, (3, 4, 2, 5)),
    "transpose": (lambda x: x.transpose(2, 0, 1), (2, 3, 5)),
    "squeeze": (lambda x: lax.squeeze(x, (1, 3)), (2, 1, 3, 1)),
    "broadcast": (lambda x: lax.broadcast_in_dim(x, (2, 3, 5), (0, 2)), (2, 5)),
    "broadcast a stretched dim": (lambda x: lax.broadcast_in_dim(x, (2, 3), (0, 1)), (2, 1)),
    "broadcast a scalar": (lambda x: jnp.broadcast_to(x, (2, 3)), ()),
    "reverse": (lambda x: lax.rev(x, (1,)), (2, 3, 5)),
    "slice": (lambda x: x[:, 1:4], (2, 5, 3)),
    "slice with strides": (lambda x: x[::2, :, ::3], (4, 5, 7)),
    "pad": (lambda x: lax.pad(x, 0.0, _PADDED), (2, 3, 5, 7, 4)),
    "concatenate": (lambda *xs: jnp.concatenate(xs, 1), (2, 3, 4), (2, 5, 4)),
    "concatenate equals": (lambda *xs: jnp.concatenate(xs, 0), (3, 4), (3, 4), (3, 4)),
    "concatenate one": (lambda x: lax.concatenate([x], 0), (3, 4)),
    "split": (lambda x: jnp.split(x, 2, axis=1), (3, 4)),
    "split unevenly": (lambda x: lax.split(x, (1, 3), axis=1), (3, 4)),
    "stack": (lambda *xs: jnp.stack(xs, 1), (3, 4), (3, 4)),
    "unstack": (lambda x: jnp.unstack(x, axis=1), (3, 4)),
    "tile": (lambda x: jnp.tile(x, (2, 1, 3)), (3, 4, 5)),
    "tile a dim of size 1": (lambda x: jnp.tile(x, (2, 3)), (3, 1)),
    "iota": (lambda: lax.broadcasted_iota(np.int32, (3, 4), 1),),
}
