"""What a model may say of itself, and the two hooks by which it lets others decide.

`named`, `entering`, `leaving` and `positions` say what an array is. `through` runs equal layers one
after another; a pipeline may run them elsewhere at other times. `attend` is attention as one
function; a ring may pass keys and values around. A model calls the hooks that it is given and,
given none, the plain ones here: `in_order` and `attention`. There is no third hook.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxpr_as_fun

from jaxpar.core.annotations import (
    ENTERING,
    LEAVING,
    USED,
    bind_attend,
    bind_layers,
    bind_named,
    bind_ordered,
)
from jaxpar.core.errors import RequestError, unknown
from jaxpar.core.jax_compat import with_constants_first

REMAT = ("none", "full", "dots", "minimal")
"""What is kept from forward for backward: everything, only layer inputs, matrix products, or
whatever has a name."""

ALIKE = {
    "query_proj": "query", "key_proj": "key", "value_proj": "value", "context": "attended",
    "mlpwi": "ffn_inner", "mlpwi_0": "ffn_inner", "mlpwi_1": "ffn_inner", "mlpwo": "mlp_out",
}  # fmt: skip
"""What MaxText calls the same arrays, so that its configurations can be typed as they are."""

ATTENDED = "attended"
"""The `checkpoint_name` of attention's result, and of the log-sums that backward needs with it."""

ARRIVED = "arrived"
"""The `checkpoint_name` of what came from other devices: moved, but not cheap to move again."""


def rematerialized(
    body: Callable, remat: str, *, otherwise: Callable | None = None, looped: bool = True
) -> Callable:
    """`body` under the checkpoint policy that `remat` names.

    Args:
        body: one layer.
        remat: one of `REMAT`, or names joined by commas as given to `checkpoint_name`.
        otherwise: the policy for "none"; None keeps everything.
        looped: whether forward and backward run in loops of their own; if not, XLA must be kept
            from merging what is computed twice, which would undo the policy.
    """
    policies = jax.checkpoint_policies
    named = {
        "none": otherwise,
        "full": policies.nothing_saveable,
        "dots": policies.dots_saveable,
        # What came from other devices is as large as the residual, and is fetched again.
        "minimal": policies.save_any_names_but_these(ARRIVED),
    }
    if remat not in named:
        policy = policies.save_only_these_names(*(ALIKE.get(n, n) for n in remat.split(",")))
    elif (policy := named[remat]) is None:
        return body
    return jax.checkpoint(body, policy=policy, prevent_cse=not looped)


def check_remat(remat: str, names: tuple[str, ...]) -> str:
    """Return `remat` if it is a policy or a comma-joined list of the model's saved `names`."""
    if remat not in REMAT:
        for name in remat.split(","):
            if ALIKE.get(name, name) not in names:
                raise unknown("remat policy or saved name", name, (*REMAT, *names))
    return remat


def named(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, with a name for each of its dims: the spelling of "this is what that array is".

    Says nothing about devices. A step constrains what was named to the sharding that its layout
    wants of such dims, so that XLA need not guess.
    """
    return bind_named(x, dims, USED)


def entering(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, made from the residual, as a part of a block reads it.

    Where the residual is sharded this is its all-gather, and in backward the reduce-scatter of what
    the devices made of it. What was gathered is kept for backward.
    """
    return bind_named(x, dims, ENTERING)


def leaving(x: jax.Array, dims: tuple[str, ...]) -> jax.Array:
    """`x`, made by a part of a block, as the residual between the parts takes it up.

    Where the residual is sharded each device keeps its shard of the sum of what all of them made,
    and in backward the shards are gathered for the part to read.
    """
    return bind_named(x, dims, LEAVING)


def positions(length: int) -> jax.Array:
    """Where each row stands in its sequence, (length,) int32: 0, 1, 2, ... in order.

    Under a ring the rows of a sequence may be dealt to devices in another order, and these are then
    the positions in that order. A model that places its rows by this says "positions" among its
    hooks.
    """
    return in_position_order(jnp.arange(length, dtype=jnp.int32))


def in_position_order(x: jax.Array, axis: int = 0) -> jax.Array:
    """`x`, one row for each position along `axis`, in the order in which rows stand."""
    return bind_ordered(x, axis)


def in_order(
    block: Callable[[Any, Any], Any],
    stacked: Any,
    x: Any,
    *,
    dims: Any,
    remat: str = "none",
    unroll: int = 1,
) -> Any:
    """Run `x` through the layers one after another, as one scan.

    Args:
        block: `block(layer, x) -> x` for one layer.
        stacked: tree of arrays, layers first: (layers, ...).
        x: the activation, or a tree of them, of the same shapes before and after a block.
        dims: the name of each dim of `x`, in a tree like it.
        remat: what backward keeps; see `rematerialized`.
        unroll: layers compiled as one piece; 1 keeps the program small, more is faster.

    Returns:
        The activation after the last layer.
    """
    del dims

    def body(y, layer):
        return block(layer, y)

    body = rematerialized(body, remat, looped=unroll == 1)
    return over_layers(body, stacked, x, unroll=unroll)


def over_layers(body: Callable[[Any, Any], Any], stacked: Any, x: Any, *, unroll: int) -> Any:
    """What `body(x, layer) -> x` makes of `x`, layer after layer, `unroll` of them in one piece."""

    def one(y, layer):
        return body(y, layer), None

    return jax.lax.scan(one, x, stacked, unroll=unroll)[0]


def layers(
    block: Callable[[Any, Any], Any],
    stacked: Any,
    x: Any,
    *,
    dims: Any,
    remat: str = "none",
    unroll: int = 1,
) -> Any:
    """As `in_order`, said in the jaxpr: the hook `through` that a loss is traced with.

    What `block` closes over becomes an operand like the others.
    """
    leaves, tree = jax.tree.flatten(stacked)
    carry, carry_tree = jax.tree.flatten(x)
    slices = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]

    def flat(slices, carry):
        y = block(jax.tree.unflatten(tree, slices), jax.tree.unflatten(carry_tree, carry))
        return jax.tree.leaves(y)

    closed = jax.make_jaxpr(flat)(slices, carry)
    names = jax.tree.leaves(dims, is_leaf=_is_names)
    made = bind_layers(
        [*closed.consts, *leaves, *carry],
        evaluate_layers,
        body=with_constants_first(closed),
        consts=len(closed.consts),
        stacked=len(leaves),
        names=tuple(map(tuple, names)),
        remat=remat,
        unroll=unroll,
    )
    return jax.tree.unflatten(carry_tree, made)


def evaluate_layers(*operands, body, consts, stacked, names, remat, unroll) -> list[jax.Array]:
    """What `layers` stands for, computed: one scan over the stacks."""
    fixed, stacks = operands[:consts], operands[consts : consts + stacked]
    function = jaxpr_as_fun(body)

    def block(slices, carry):
        return list(function(*fixed, *slices, *carry))

    carry = list(operands[consts + stacked :])
    return in_order(block, list(stacks), carry, dims=names, remat=remat, unroll=unroll)


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *more: Any,
    causal: bool = True,
    implementation: str = "auto",
    scale: float | None = None,
    **options: Any,
) -> jax.Array:
    """As `attention`, said in the jaxpr: the hook `attend` that a loss is traced with.

    Raises:
        RequestError: it is given more than attention that is causal or sees everything needs.
    """
    if more or options:
        what = ", ".join(sorted(options)) or "a fourth operand"
        raise RequestError(
            f"the hook `attend` knows attention that is causal or sees everything, and is also "
            f"given {what}: leave that out, or let the loss take no attend="
        )
    how = {"causal": causal, "implementation": implementation, "scale": scale_of(q, scale)}
    return bind_attend(q, k, v, attention, **how)


def scale_of(q: jax.Array, scale: float | None) -> float:
    """What products of queries and keys are multiplied by, if nothing else is asked for."""
    return q.shape[-1] ** -0.5 if scale is None else scale


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = True,
    implementation: str = "whole",
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention with grouped queries (Ainslie et al. 2023), every score held at once.

    Args:
        q: (batch, sequence, kv_heads, group, head_dim).
        k: (batch, sequence, kv_heads, head_dim).
        v: as `k`.
        causal: whether a position sees only itself and earlier ones.
        implementation: what the hook `attend` may make of this: "fused" (no scores are kept),
            "whole" as here, or "auto", fused where devices, types and sizes allow it. Here it
            changes nothing.
        scale: what products of queries and keys are multiplied by; None is head_dim^-1/2.

    Returns:
        As `q`.
    """
    del implementation
    # A group of one query is computed without its dim: in backward that would be summed over beside
    # the queries, and XLA:CPU copies the scores for a product that sums over two of their dims.
    alone = q.shape[3] == 1
    g, q = ("", jnp.squeeze(q, 3)) if alone else ("g", q)
    scores = jnp.einsum(f"bqk{g}h,bskh->bk{g}qs", q * scale_of(q, scale), k)
    # Statistics of bfloat16 scores are taken in float32; wider types keep their own.
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if causal:
        query = jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 0)
        key = jax.lax.broadcasted_iota(jnp.int32, scores.shape[-2:], 1)
        scores = jnp.where(query >= key, scores, jnp.finfo(scores.dtype).min)
    # Divided after the values are summed: head_dim numbers a query rather than one a key. On CPU
    # the whole step took 6 to 11 % less so.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.moveaxis(jnp.sum(weights, axis=-1), -1, 1)[..., None]
    values = jnp.einsum(f"bk{g}qs,bskh->bqk{g}h", weights.astype(v.dtype), v)
    values = values / total.astype(jnp.promote_types(v.dtype, jnp.float32))
    values = (jnp.expand_dims(values, 3) if alone else values).astype(v.dtype)
    return checkpoint_name(values, ATTENDED)
