"""The two places where a model lets others decide: the way through its layers, and its attention.

`through` runs equal layers one after another; a pipeline may run them elsewhere at other times.
`attend` is attention as one function; a ring may pass keys and values around. A model calls the
seams that it is given and, given none, the plain ones here. There is no third seam.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxpar.core.errors import unknown

REMAT = ("none", "full", "dots")
"""What is kept from forward for backward: everything, only layer inputs, or matrix products."""

# A weight that was moved, cast or reshaped for use is remade in backward rather than kept: keeping
# it would hold every layer's whole weights at once, which is what cutting them was to avoid.
_CHEAP = frozenset(
    {"sharding_constraint", "convert_element_type", "reshape", "transpose", "squeeze", "name"}
)


ARRIVED = "arrived"
"""The `checkpoint_name` of what came from other devices: moved, but not cheap to move again."""


def _keep_all_but_moves(primitive, *_, **params) -> bool:
    return primitive.name not in _CHEAP or params.get("name") == ARRIVED


def rematerialized(body: Callable, remat: str, *, gathers: bool, looped: bool = True) -> Callable:
    """`body` under the checkpoint policy that `remat` names.

    Args:
        body: one layer.
        remat: "none", "full", "dots", or names joined by commas as given to `checkpoint_name`.
        gathers: whether `body` gathers its weights; if so they are gathered again in backward.
        looped: whether forward and backward run in loops of their own; if not, XLA must be kept
            from merging what is computed twice, which would undo the policy.
    """
    policies = jax.checkpoint_policies
    if remat == "none":
        policy = _keep_all_but_moves if gathers else None
        if policy is None:
            return body
    elif remat == "full":
        policy = policies.nothing_saveable
    elif remat == "dots":
        policy = policies.dots_saveable
    else:
        policy = policies.save_only_these_names(*remat.split(","))
    return jax.checkpoint(body, policy=policy, prevent_cse=not looped)


def check_remat(remat: str, names: tuple[str, ...]) -> str:
    """Return `remat` if it is a policy or a comma-joined list of the model's saved `names`."""
    if remat not in REMAT:
        for name in remat.split(","):
            if name not in names:
                raise unknown("remat policy or saved name", name, (*REMAT, *names))
    return remat


_place: ContextVar[Callable[..., jax.Array] | None] = ContextVar("place", default=None)
_fetch: ContextVar[Callable[..., jax.Array] | None] = ContextVar("fetch", default=None)
_share: ContextVar[Callable[..., jax.Array] | None] = ContextVar("share", default=None)


def is_placing() -> bool:
    """Whether somebody places what is named, so that a loss should say names."""
    return _place.get() is not None


def named(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, with a name for each of its dims: the spelling of "this is what that array is".

    Says nothing about devices, and is `x` itself outside a step. A step pins what was named where
    its layout wants such dims, so that XLA need not guess.
    """
    return _placed(x, dims, between=False)


def entering(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, made from the residual, as a part of a block reads it.

    Where the residual lies in pieces this is their gather, and in backward the sum of what the
    devices made of it, of which each keeps its piece. What was gathered is kept for backward.
    """
    x = _placed(_placed(x, dims, between=True), dims, between=False)
    return x if _place.get() is None else checkpoint_name(x, ARRIVED)


def leaving(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, made by a part of a block, as the residual between the parts takes it up.

    Where the residual lies in pieces each device keeps its piece of the sum of what all of them
    made, and in backward the pieces are gathered for the part to read. Without the first of the two
    pins XLA was seen to gather a table, or to move a product's other operand, instead.
    """
    return _placed(_placed(x, dims, between=False), dims, between=True)


def _placed(x, dims, *, between):
    place = _place.get()
    return x if place is None else place(x, dims, between=between)


@contextmanager
def placing(
    place: Callable[..., jax.Array],
    fetch: Callable[..., jax.Array] | None = None,
    share: Callable[..., jax.Array] | None = None,
) -> Iterator[None]:
    """While a loss is traced: what `named` does, as `place(x, dims, between=...)`.

    Args:
        place: lays an activation out.
        fetch: brings one layer's weight, `fetch(x, dims)`, from where it is stored to where it is
            used; None if weights are there before the loss begins.
        share: computes a function where its operands lie, `share(function, operands, dims,
            result_dims)`, a dims for each operand; None to leave that to XLA.
    """
    tokens = _place.set(place), _fetch.set(fetch), _share.set(share)
    try:
        yield
    finally:
        _place.reset(tokens[0])
        _fetch.reset(tokens[1])
        _share.reset(tokens[2])


def sharing() -> Callable[..., jax.Array] | None:
    """What computes a function where its operands lie, or None to leave that to XLA."""
    return _share.get()


def fetching() -> Callable[..., jax.Array] | None:
    """What brings one layer's weight to where it is used, or None where it is there already."""
    return _fetch.get()


def positions(attend: Callable[..., jax.Array], length: int) -> jax.Array | None:
    """Where each row stands in its sequence under `attend`, (length,); None means in order.

    A model that places its rows by this says "positions" among its seams.
    """
    order = getattr(attend, "positions", None)
    return None if order is None else order(length)


def in_order(
    block: Callable[[Any, Any], Any],
    stacked: Any,
    x: Any,
    *,
    dims: Any,
    remat: str = "none",
    unroll: int = 1,
    place_weights: Callable[[Any], Any] | None = None,
    place_activation: Callable[[jax.Array, tuple[str, ...]], jax.Array] | None = None,
) -> Any:
    """Run `x` through the layers one after another, as one scan.

    Args:
        block: `block(layer, x) -> x` for one layer.
        stacked: tree of arrays, layers first: (layers, ...).
        x: the activation, or a tree of them, of the same shapes before and after a block.
        dims: the name of each dim of `x`, in a tree like it.
        remat: what backward keeps; see `rematerialized`.
        unroll: layers compiled as one piece; 1 keeps the program small, more is faster.
        place_weights: puts one layer's weights where they are needed for use, or None.
        place_activation: pins `x` by its dims at each layer boundary, or None. Without the pin XLA
            was seen to split activations rather than gather weights.

    Returns:
        The activation after the last layer.
    """
    pin = partial(jax.tree.map, place_activation or (lambda y, _: y))
    place = place_weights or (lambda layer: layer)

    def body(y, layer):
        return pin(block(place(layer), y), dims)

    body = rematerialized(body, remat, gathers=place_weights is not None, looped=unroll == 1)

    def one(y, layer):
        return body(y, layer), None

    return jax.lax.scan(one, pin(x, dims), stacked, unroll=unroll)[0]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = True) -> jax.Array:
    """Softmax attention with grouped queries (Ainslie et al. 2023), every score held at once.

    Args:
        q: (batch, sequence, kv_heads, group, head_dim).
        k: (batch, sequence, kv_heads, head_dim).
        v: as `k`.
        causal: whether a position sees only itself and earlier ones.

    Returns:
        As `q`.
    """
    scores = jnp.einsum("bqkgh,bskh->bkgqs", q * q.shape[-1] ** -0.5, k)
    # Statistics of bfloat16 scores are taken in float32; wider types keep their own.
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if causal:
        query = jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 0)
        key = jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 1)
        scores = jnp.where(query >= key, scores, jnp.finfo(scores.dtype).min)
    # Divided after the values are summed: head_dim numbers a query rather than one a key. On CPU
    # the whole step took 6 to 11 % less so.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.moveaxis(jnp.sum(weights, axis=-1), 3, 1)[..., None]
    values = jnp.einsum("bkgqs,bskh->bqkgh", weights.astype(v.dtype), v)
    return (values / total.astype(jnp.promote_types(v.dtype, jnp.float32))).astype(v.dtype)
