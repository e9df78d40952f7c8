"""The last product of a classifier: logits in at least float32, gradients in the operands' type.

Left to JAX the cotangent of float32 logits stays float32, and with it both products of backward:
float32 matrix products, and a gradient of the whole head that is communicated in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp


def logits_of(x: jax.Array, head: jax.Array) -> jax.Array:
    """Scores (..., vocabulary) of activations (..., width) by a head (width, vocabulary).

    In at least float32. Where activations are narrower, the cotangent is rounded to their type
    before the products of backward, as is that of every other activation.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if wide == x.dtype:
        return _product(x, head, wide)
    return _narrow_product(wide, x, head)


def _product(x, head, dtype):
    """`x @ head`, summed and kept in `dtype`."""
    return jnp.einsum("...d,dv->...v", x, head, preferred_element_type=dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_product(wide, x, head):
    """`x @ head` in the type `wide`; see `_backward`."""
    return _product(x, head, wide)


def _forward(wide, x, head):
    """The product, and what backward needs."""
    return _product(x, head, wide), (x, head)


def _backward(wide, kept, cotangent):
    """The gradients of both operands, in their own type."""
    del wide
    x, head = kept
    cotangent = cotangent.astype(x.dtype)
    rows = tuple(range(x.ndim - 1))
    dx = jnp.einsum("...v,dv->...d", cotangent, head)
    return dx, jnp.tensordot(x, cotangent, axes=(rows, rows))


_narrow_product.defvjp(_forward, _backward)
