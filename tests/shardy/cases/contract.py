"""Cases of what sums, compares, sorts or scans along dims, or slides windows over them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpar.core.annotations import bind_attend
from shardy.cases.arguments import bools, gradients, ints


def _pool(reducer, start, window, strides, padding: Any = "VALID", **how):
    return lambda x: lax.reduce_window(
        x, np.float32(start), reducer, window, strides, padding, **how
    )


_maxima = _pool(lax.max, -np.inf, (1, 2, 2, 1), (1, 2, 2, 1))
_general = _pool(lambda a, b: a + 2 * b, 0, (1, 2), (1, 1))


def _attention(q, k, v, *, causal):
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k)
    return jnp.einsum("bhgqk,bkhd->bqhgd", jax.nn.softmax(scores), v)


def _ragged(contract, batch, ragged, groups):
    """A product of rows in groups, by its dims."""
    numbers = lax.RaggedDotDimensionNumbers((contract, batch), ragged, groups)
    return lambda x, w, sizes: lax.ragged_dot_general(x, w, sizes, numbers)


CASES = {
    "product": (jnp.matmul, (6, 4), (4, 8)),
    "product of batches": (
        lambda x, y: jnp.einsum("bqhd,bkhd->bhqk", x, y),
        (2, 3, 4, 5),
        (2, 6, 4, 5),
    ),
    "product over two dims": (
        lambda x, w: jnp.einsum("bthd,hde->bte", x, w),
        (2, 3, 4, 5),
        (4, 5, 6),
    ),
    "product over nothing": (jnp.outer, (3,), (4,)),
    "product over a dim of size 1": (jnp.matmul, (6, 1), (1, 8)),
    "inner product": (jnp.dot, (6,), (6,)),
    "gradients of a product": gradients((jnp.matmul, (2, 6, 4), (4, 8))),
    "ragged product": (lax.ragged_dot, (12, 4), (3, 4, 5), ints(3)),
    "ragged product of batches": (
        _ragged(((2,), (2,)), ((0,), (1,)), (1,), (0,)),
        (2, 12, 4),
        (3, 2, 4, 5),
        ints(2, 3),
    ),
    "ragged product with sizes for every dim": (
        _ragged(((3,), (2,)), ((0,), (1,)), (2,), (0,)),
        (2, 7, 12, 4),
        (3, 2, 4, 5),
        ints(2, 7, 3),
    ),
    "ragged contraction": (
        _ragged(((0, 1), (0, 1)), ((), ()), (1,), ()),
        (2, 12, 4),
        (2, 12, 5),
        ints(2, 3),
    ),
    "ragged batch": (
        _ragged(((2,), (1,)), ((0,), (0,)), (0,), ()),
        (12, 6, 4),
        (12, 4, 5),
        ints(3),
    ),
    "gradients of a ragged product": (
        lambda x, w, n: jax.grad(lambda x, w: jnp.sin(lax.ragged_dot(x, w, n)).sum(), (0, 1))(x, w),
        (12, 4),
        (3, 4, 5),
        ints(3),
    ),
    **{
        f"reduce {how}": (partial(getattr(lax, f"reduce_{how}"), axes=(1,)), (2, 3, 4))
        for how in ("sum", "max", "min", "prod")
    },
    "reduce two dims": (lambda x: x.sum((0, 2)), (2, 3, 4)),
    "reduce all dims": (lambda x: x.max(), (2, 3, 4)),
    "reduce and": (lambda x: x.all(1), bools(3, 4)),
    "reduce or": (lambda x: x.any(1), bools(3, 4)),
    "reduce xor": (lambda x: lax.reduce_xor(x, axes=(1,)), ints(3, 4)),
    "argmax": (lambda x: jnp.argmax(x, 1), (3, 4, 5)),
    "argmin": (lambda x: jnp.argmin(x, -1), (3, 4)),
    "reduce by any function": (
        lambda x, y: lax.reduce((x, y), (0.0, 0.0), lambda a, b: (a[0] + b[1], a[1] * b[0]), (1,)),
        (3, 4),
        (3, 4),
    ),
    "sort": (lambda x: lax.sort(x, dimension=1), (2, 3, 4)),
    "sort by keys": (lambda *xs: lax.sort(xs, dimension=0, num_keys=2), (3, 4), (3, 4), ints(3, 4)),
    "greatest": (lambda x: lax.top_k(x, 2), (3, 4, 5)),
    "greatest, about": (lambda x: lax.approx_max_k(x, 2, reduction_dimension=1), (3, 8, 5)),
    "cumulative sum": (lambda x: lax.cumsum(x, 1), (3, 4, 5)),
    "cumulative product": (lambda x: lax.cumprod(x, 0), (3, 4)),
    "cumulative max": (lambda x: lax.cummax(x, 1, reverse=True), (3, 4)),
    "cumulative min": (lambda x: lax.cummin(x, 1), (3, 4)),
    "cumulative logsumexp": (lambda x: lax.cumlogsumexp(x, 1), (3, 4)),
    "window of maxima": (_maxima, (2, 8, 6, 3)),
    "gradient of a window of maxima": gradients((_maxima, (2, 8, 6, 3))),
    "derivative of a window of maxima": (
        lambda x, t: jax.jvp(_maxima, (x,), (t,))[1],
        (2, 8, 6, 3),
        (2, 8, 6, 3),
    ),
    "second derivative of a window of maxima": gradients(gradients((_maxima, (2, 8, 6, 3)))),
    "window of sums": (_pool(lax.add, 0, (1, 3), (1, 1), "SAME"), (4, 6)),
    "gradient of a window of sums": gradients((_pool(lax.add, 0, (1, 3), (1, 2)), (4, 7))),
    "window of minima": (_pool(lax.min, np.inf, (1, 2), (1, 2)), (4, 6)),
    "window dilated": (_pool(lax.add, 0, (1, 2), (1, 1), window_dilation=(1, 2)), (4, 6)),
    "base dilated": (_pool(lax.add, 0, (1, 1), (1, 1), base_dilation=(2, 1)), (4, 6)),
    "window of any function": (_general, (4, 6)),
    "windows of two arrays": (
        lambda x, y: lax.reduce_window(
            (x, y), (0.0, 0.0), lambda a, b: (a[0] + b[1], a[1] * b[0]), (1, 2), (1, 1), "VALID"
        ),
        (4, 6),
        (4, 6),
    ),
    "window of padding": (_pool(lax.add, 0, (1, 1), (1, 1), ((0, 0), (1, 0))), (4, 6)),
    "window of strides": (_pool(lax.add, 0, (1, 1), (2, 1)), (4, 6)),
    "attention": (
        lambda q, k, v: bind_attend(q, k, v, _attention, causal=True),
        (2, 5, 3, 4, 6),
        (2, 5, 3, 6),
        (2, 5, 3, 7),
    ),
}
