"""cuDNN's fused attention as XLA:GPU's own calls: forward with log-sums, and backward from them.

XLA hands the targets `__cudnn$fmhaSoftmax` and `__cudnn$fmhaSoftmaxBackward` to cuDNN's flash
attention. They are emitted for whatever devices XLA compiles for, here or only described. Shape
suffixes: B rows, Q queries, S keys, N query heads, K key-value heads, H head_dim.
"""

import json
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.core.varying import as_varying, varying, varying_shape

LARGEST_HEAD = 256
"""Elements of a head that cuDNN takes at most, on Hopper and newer; see `core.nvidia.fuses`."""

_TYPES = {"bfloat16": "BF16", "float16": "F16"}
"""The types that it takes, and what XLA calls them."""

# Which dims of which two operands each of its products contracts and keeps apart, for operands of
# (B, Q or S, heads, H) and scores of (B, heads, Q, S).
_FORWARD = {
    "bmm1": ((3, 3), ((0, 2), (0, 2))),
    "bmm2": ((3, 1), ((0, 1), (0, 2))),
}
_BACKWARD = {
    "bmm1_grad_gemm1": ((2, 1), ((0, 1), (0, 2))),
    "bmm1_grad_gemm2": ((3, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm1": ((2, 1), ((0, 1), (0, 2))),
    "bmm2_grad_gemm2": ((3, 3), ((0, 2), (0, 2))),
}


def unfit(dtype: Any, head_dim: int, value_dim: int) -> str | None:
    """Why cuDNN cannot compute attention of such operands, or None if it can."""
    if jnp.dtype(dtype).name not in _TYPES:
        return f"it takes bfloat16 and float16, and queries are {jnp.dtype(dtype).name}"
    if head_dim != value_dim:
        return f"heads of queries have {head_dim} elements and those of values {value_dim}"
    if head_dim % 8 or head_dim > LARGEST_HEAD:
        return f"a head of {head_dim} elements is no multiple of 8 up to {LARGEST_HEAD}"
    return None


def forward(q_BQNH, k_BSKH, v_BSKH, *, causal: bool, scale: float) -> tuple[jax.Array, jax.Array]:
    """The result, (B, Q, N, H), and each query's log of its summed exponentials, (B, N, Q)."""
    rows, queries, heads, width = q_BQNH.shape
    y_BNQH, log_BNQ, _ = _call(
        "__cudnn$fmhaSoftmax",
        (q_BQNH, k_BSKH, v_BSKH),
        (
            ((rows, heads, queries, width), q_BQNH.dtype),
            ((rows, heads, queries), jnp.float32),
        ),
        _config(q_BQNH, k_BSKH.shape[1], causal, scale, _FORWARD),
        headed=1,
    )
    return jnp.moveaxis(y_BNQH, 1, 2), log_BNQ


def backward(
    q_BQNH, k_BSKH, v_BSKH, y_BQNH, log_BNQ, dy_BQNH, *, causal: bool, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values, from what `forward` made and its gradient.

    The log-sums may be over more keys than these, and `y` what all of them make: each block of keys
    then gives its own share.
    """
    made = _call(
        "__cudnn$fmhaSoftmaxBackward",
        (q_BQNH, k_BSKH, v_BSKH, log_BNQ, dy_BQNH, y_BQNH),
        tuple(
            ((x.shape[0], x.shape[2], x.shape[1], x.shape[3]), x.dtype)
            for x in (q_BQNH, k_BSKH, v_BSKH)
        ),
        _config(q_BQNH, k_BSKH.shape[1], causal, scale, _BACKWARD),
        headed=3,
    )
    dq, dk, dv = (jnp.moveaxis(x, 1, 2) for x in made[:3])
    return dq, dk, dv


def _call(target: str, operands, results, config: str, *, headed: int) -> Any:
    """The results of a call, and its workspace.

    The first `headed` of them are named (B, heads, length, H) and lie as (B, length, heads, H).
    """
    axes = frozenset().union(*(varying(x) for x in operands))
    shapes = (*results, ((0,), jnp.uint8))
    call = jax.ffi.ffi_call(
        target,
        tuple(varying_shape(shape, dtype, axes) for shape, dtype in shapes),
        output_layouts=[
            (0, 2, 1, 3) if i < headed else tuple(range(len(shape)))
            for i, (shape, _) in enumerate(shapes)
        ],
        custom_call_api_version=2,
        legacy_backend_config=config,
    )
    return call(*(as_varying(x, axes) for x in operands))


def _config(q_BQNH, keys: int, causal: bool, scale: float, products) -> str:
    """What XLA is told of a call, as its proto GpuBackendConfig in JSON."""
    rows, queries, heads, _ = q_BQNH.shape
    dims = {
        f"{name}_dot_dimension_numbers": {
            "lhs_contracting_dimensions": [str(left)],
            "rhs_contracting_dimensions": [str(right)],
            "lhs_batch_dimensions": [str(dim) for dim in left_batch],
            "rhs_batch_dimensions": [str(dim) for dim in right_batch],
        }
        for name, ((left, right), (left_batch, right_batch)) in products.items()
    }
    fused = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": scale,
        "intermediate_tensor_shape": {
            "element_type": _TYPES[q_BQNH.dtype.name],
            "dimensions": [str(size) for size in (rows, heads, queries, keys)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "CAUSAL" if causal else "NO_MASK",
        **dims,
        "dropout_rate": 0.0,
        "seed": 42,
        "sliding_window_length": 0,
        "max_seg_per_batch": 1,
        "is_paged_attention": False,
    }
    return json.dumps({"operation_queue_id": "0", "cudnn_fmha_backend_config": fused})
