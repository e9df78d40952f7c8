"""Softmax attention a block of keys at a time: its running state, its result and its gradients.

Blockwise attention (Rabe and Staats 2021; Dao et al. 2022) in plain JAX, so that no more than
`KEYS` scores a query are ever held. Shape suffixes: B rows, Q queries, S keys, K key-value heads,
G queries a head, H head_dim. Queries come scaled; sums and statistics are at least float32.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

KEYS = 512
"""Most keys taken at once. Fewer scores are held with fewer, and products get thinner."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """The running softmax of each query over the keys so far.

    Attributes:
        top: the largest score, (B, K, G, Q).
        total: the sum of exp(score - top), likewise.
        values: the sum of exp(score - top) times values, (B, K, G, Q, H).
    """

    top: Any
    total: Any
    values: Any


def forward(q_BQKGH, k_BSKH, v_BSKH, *, causal: bool, scale: float) -> tuple[jax.Array, jax.Array]:
    """The result, (B, Q, K, G, H), and each query's log of its summed exponentials, (B, K, G, Q).

    Args:
        q_BQKGH: the queries, not scaled.
        k_BSKH: the keys.
        v_BSKH: their values.
        causal: whether a query sees only keys up to its own position.
        scale: what products of queries and keys are multiplied by.
    """
    q = q_BQKGH * scale
    seen = see(nothing_seen(q), q, k_BSKH, v_BSKH, ahead=0 if causal else None)
    return result(seen, v_BSKH.dtype)


def backward(q_BQKGH, k_BSKH, v_BSKH, y_BQKGH, log_BKGQ, dy_BQKGH, *, causal: bool, scale: float):
    """The gradients of queries, keys and values, from what `forward` made and its gradient.

    The log-sums may be over more keys than these, and `y` what all of them make: each run of keys
    then gives its own share.
    """
    inner = _product("bqkgh,bqkgh->bkgq", *(x.astype(wide(x)) for x in (y_BQKGH, dy_BQKGH)))
    ahead = 0 if causal else None
    dq, dk, dv = gradients(q_BQKGH * scale, k_BSKH, v_BSKH, dy_BQKGH, log_BKGQ, inner, ahead=ahead)
    likes = (q_BQKGH, k_BSKH, v_BSKH)
    return tuple(x.astype(like.dtype) for x, like in zip((dq * scale, dk, dv), likes, strict=True))


def nothing_seen(q_BQKGH: jax.Array) -> Seen:
    """The state before any key."""
    values = jnp.zeros_like(jnp.moveaxis(q_BQKGH, 1, 3), dtype=wide(q_BQKGH))
    total = values[..., 0]
    return Seen(total + jnp.finfo(total.dtype).min, total, values)


def see(seen: Seen, q_BQKGH, k_BSKH, v_BSKH, *, ahead=None) -> Seen:
    """The state after more keys.

    Args:
        seen: the state so far.
        q_BQKGH: the queries, scaled.
        k_BSKH: the keys.
        v_BSKH: their values.
        ahead: by how many positions the first query stands behind the first key; a query then sees
            the keys up to itself. None lets all see all.
    """

    def block(at, seen):
        k, v = (_keys(x, at) for x in (k_BSKH, v_BSKH))
        scores = _scores(q_BQKGH, k, None if ahead is None else ahead - at)
        top = jnp.maximum(seen.top, jnp.max(scores, axis=-1))
        faded, weights = jnp.exp(seen.top - top), jnp.exp(scores - top[..., None])
        added = _product("bkgqs,bskh->bkgqh", weights.astype(v.dtype), v)
        return Seen(
            top,
            seen.total * faded + jnp.sum(weights, axis=-1),
            seen.values * faded[..., None] + added,
        )

    return _in_blocks(block, k_BSKH.shape[1], seen)


def result(seen: Seen, dtype) -> tuple[jax.Array, jax.Array]:
    """Attention's result, (B, Q, K, G, H), and each query's log of its summed exponentials."""
    y_BKGQH = (seen.values / seen.total[..., None]).astype(dtype)
    return jnp.moveaxis(y_BKGQH, 3, 1), seen.top + jnp.log(seen.total)


def gradients(q_BQKGH, k_BSKH, v_BSKH, dy_BQKGH, log_BKGQ, inner_BKGQ, *, ahead=None):
    """Gradients of the scaled queries, of keys and of values, each at least float32.

    Args:
        q_BQKGH: the queries, scaled.
        k_BSKH: the keys.
        v_BSKH: their values.
        dy_BQKGH: the gradient of the result.
        log_BKGQ: the second of what `result` returned, over all keys there are.
        inner_BKGQ: the inner product of result and its gradient.
        ahead: as in `see`.
    """

    def block(at, sums):
        dq, dk, dv = sums
        k, v = (_keys(x, at) for x in (k_BSKH, v_BSKH))
        scores = _scores(q_BQKGH, k, None if ahead is None else ahead - at)
        weights = jnp.exp(scores - log_BKGQ[..., None])
        pull = _product("bqkgh,bskh->bkgqs", dy_BQKGH, v) - inner_BKGQ[..., None]
        moved = (weights * pull).astype(k.dtype)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=at, axis=1)
        weights = weights.astype(v.dtype)
        return (
            dq + _product("bkgqs,bskh->bqkgh", moved, k),
            put(dk, _product("bkgqs,bqkgh->bskh", moved, q_BQKGH)),
            put(dv, _product("bkgqs,bqkgh->bskh", weights, dy_BQKGH)),
        )

    zeros = tuple(jnp.zeros_like(x, dtype=wide(x)) for x in (q_BQKGH, k_BSKH, v_BSKH))
    return _in_blocks(block, k_BSKH.shape[1], zeros)


def wide(x: jax.Array):
    """The dtype that sums of `x` are taken in."""
    return jnp.promote_types(x.dtype, jnp.float32)


def block_size(keys: int) -> int:
    """The most keys, up to `KEYS`, that divide `keys`."""
    return next(size for size in range(min(keys, KEYS), 0, -1) if keys % size == 0)


def _in_blocks(block, keys: int, start):
    """`start` after `block(at, carry)` for the first key `at` of every block of `keys` keys."""
    size = block_size(keys)
    if size == keys:
        return block(0, start)
    return lax.fori_loop(0, keys // size, lambda i, carry: block(i * size, carry), start)


def _keys(x_BSKH, at):
    """The block of keys or values that starts at position `at`."""
    return lax.dynamic_slice_in_dim(x_BSKH, at, block_size(x_BSKH.shape[1]), axis=1)


def _scores(q_BQKGH, k_BSKH, ahead):
    """Products of queries and keys, (B, K, G, Q, S); the least float for a key after its query."""
    scores = _product("bqkgh,bskh->bkgqs", q_BQKGH, k_BSKH)
    if ahead is None:
        return scores
    query = lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 0)
    key = lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 1)
    return jnp.where(query + ahead >= key, scores, jnp.finfo(scores.dtype).min)


def _product(formula, a, b):
    """An einsum of two arrays, summed in the wide dtype of the first."""
    return jnp.einsum(formula, a, b, preferred_element_type=wide(a))
