"""Attention that keeps no scores: cuDNN's where XLA compiles for NVIDIA GPUs, blocks elsewhere.

Forward gives each query's log of its summed exponentials beside the result; backward computes the
scores again from it (FlashAttention, Dao et al. 2022). Both are primitives of their own: which of
the two computes them is decided where a program is lowered, so that one trace serves all devices,
and a mode sees one equation. Shape suffixes: B rows, Q queries, S keys, K key-value heads, G
queries a head, H head_dim.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from jaxpar.attention import blocks, cudnn
from jaxpar.core.errors import LayoutError
from jaxpar.core.hooks import ATTENDED
from jaxpar.core.nvidia import fuses
from jaxpar.core.varying import as_varying, varying

FUSED = "fused_attention"
"""The name of the primitive in a jaxpr."""

_forward = Primitive(FUSED)
_backward = Primitive("fused_attention_gradient")


def suits(q_BQKGH: jax.Array, v_BSKH: jax.Array, implementation: str) -> bool:
    """Whether attention of such operands, asked for so, is fused.

    Raises:
        LayoutError: it is asked to be, and cannot. In float64, which is for proofs, it is whole.
    """
    fault = cudnn.unfit(q_BQKGH.dtype, q_BQKGH.shape[-1], v_BSKH.shape[-1])
    if fault and implementation == "fused" and q_BQKGH.dtype != jnp.float64:
        raise LayoutError(
            f"attention=fused is cuDNN's, and {fault}: use compute_dtype=bfloat16 and heads that "
            "it takes, or attention=auto"
        )
    return implementation != "whole" and fault is None


def forward(
    q_BQKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *, causal: bool, scale: float
) -> tuple[jax.Array, jax.Array]:
    """The result, (B, Q, K, G, H), and each query's log of its summed exponentials, (B, K, G, Q).

    Args:
        q_BQKGH: the queries, not scaled.
        k_BSKH: the keys.
        v_BSKH: their values.
        causal: whether a query sees only keys up to its own position.
        scale: what products of queries and keys are multiplied by.
    """
    operands = _alike(q_BQKGH, k_BSKH, v_BSKH)
    return tuple(_forward.bind(*operands, causal=causal, scale=scale))


def backward(
    q_BQKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    y_BQKGH: jax.Array,
    log_BKGQ: jax.Array,
    dy_BQKGH: jax.Array,
    *,
    causal: bool,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values.

    Args:
        q_BQKGH, k_BSKH, v_BSKH: what `forward` was given, or a part of it.
        y_BQKGH, log_BKGQ: what it returned, over all keys there are.
        dy_BQKGH: the gradient of the result.
        causal, scale: as in `forward`.
    """
    operands = _alike(q_BQKGH, k_BSKH, v_BSKH, y_BQKGH, log_BKGQ, dy_BQKGH)
    return tuple(_backward.bind(*operands, causal=causal, scale=scale))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
    causal: bool, scale: float, q_BQKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
) -> jax.Array:
    """Attention of the operands, (B, Q, K, G, H); all as in `forward`."""
    return forward(q_BQKGH, k_BSKH, v_BSKH, causal=causal, scale=scale)[0]


def _attend_forward(causal, scale, q, k, v):
    """What `attend` returns, and what backward needs."""
    y, log = forward(q, k, v, causal=causal, scale=scale)
    # Both by the name that a remat policy may keep, or forward would be made again for either.
    y, log = (checkpoint_name(x, ATTENDED) for x in (y, log))
    return y, (q, k, v, y, log)


def _attend_backward(causal, scale, kept, dy):
    """Gradients of queries, keys and values."""
    q, k, v, y, log = kept
    return backward(q, k, v, y, log, dy, causal=causal, scale=scale)


attend.defvjp(_attend_forward, _attend_backward)


def _alike(*operands: jax.Array) -> list[jax.Array]:
    """The operands, each cast to varying along every mesh axis along which any of them varies."""
    axes = frozenset().union(*(varying(x) for x in operands))
    return [as_varying(x, axes) for x in operands]


def _forward_by_cudnn(q_BQKGH, k_BSKH, v_BSKH, *, causal, scale):
    """`forward`, by cuDNN."""
    q_BQNH = _joined(q_BQKGH)
    y_BQNH, log_BNQ = cudnn.forward(q_BQNH, k_BSKH, v_BSKH, causal=causal, scale=scale)
    rows, queries, heads, group, _ = q_BQKGH.shape
    y_BQKGH = y_BQNH.reshape(q_BQKGH.shape)
    return y_BQKGH, log_BNQ.reshape(rows, heads, group, queries)


def _backward_by_cudnn(q_BQKGH, k_BSKH, v_BSKH, y_BQKGH, log_BKGQ, dy_BQKGH, *, causal, scale):
    """`backward`, by cuDNN."""
    rows, queries, heads, group, _ = q_BQKGH.shape
    dq_BQNH, dk_BSKH, dv_BSKH = cudnn.backward(
        _joined(q_BQKGH),
        k_BSKH,
        v_BSKH,
        _joined(y_BQKGH),
        log_BKGQ.reshape(rows, heads * group, queries),
        _joined(dy_BQKGH),
        causal=causal,
        scale=scale,
    )
    return dq_BQNH.reshape(q_BQKGH.shape), dk_BSKH, dv_BSKH


def _joined(x_BQKGH):
    """All query heads in one dim, (B, Q, K * G, H)."""
    rows, queries, heads, group, width = x_BQKGH.shape
    return x_BQKGH.reshape(rows, queries, heads * group, width)


def _forward_types(q, k, v, **how):
    """The types of the result and of the log-sums."""
    del k, how
    rows, queries, heads, group, _ = q.shape
    y = q.update(shape=(*q.shape[:-1], v.shape[-1]), dtype=v.dtype)
    log = q.update(
        shape=(rows, heads, group, queries),
        dtype=blocks.wide(q),
        sharding=q.sharding.update(spec=PartitionSpec(*[None] * 4)),
    )
    return y, log


def _backward_types(q, k, v, *rest, **how):
    """The types of three gradients."""
    del rest, how
    return q, k, v


def _in_rows(primitive: Primitive):
    """The rule of a primitive under vmap: what is mapped becomes more rows."""

    def batch(operands, where, **how):
        (count,) = {x.shape[d] for x, d in zip(operands, where, strict=True) if d is not None}
        pairs = zip(operands, where, strict=True)
        folded = [
            jnp.broadcast_to(x, (count, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in pairs
        ]
        folded = [x.reshape(count * x.shape[1], *x.shape[2:]) for x in folded]
        made = primitive.bind(*folded, **how)
        made = [x.reshape(count, x.shape[0] // count, *x.shape[1:]) for x in made]
        return made, [0] * len(made)

    return batch


def _define(primitive: Primitive, types: Any, plain: Any, by_cudnn: Any) -> None:
    """Tell JAX what a primitive is: on NVIDIA GPUs `by_cudnn` where there is one, else `plain`."""

    def on_cuda(*operands, **how):
        return (by_cudnn if fuses(operands[0].shape[-1]) else plain)(*operands, **how)

    def jvp(primals, tangents, **how):
        # Of the gradient itself, as a Hessian asks for: the plain one has derivatives.
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return jax.jvp(lambda *x: list(plain(*x, **how)), list(primals), tangents)

    primitive.multiple_results = True
    primitive.def_impl(lambda *x, **how: jax.jit(partial(primitive.bind, **how))(*x))
    primitive.def_abstract_eval(types)
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = _in_rows(primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=True))
    lowered = mlir.lower_fun(on_cuda, multiple_results=True)
    mlir.register_lowering(primitive, lowered, platform="cuda")


_define(_forward, _forward_types, blocks.forward, _forward_by_cudnn)
_define(_backward, _backward_types, blocks.backward, _backward_by_cudnn)
