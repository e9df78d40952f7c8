"""Loss scaling: gradients too small for float16 lifted into its range, and let down in float32.

The loss's total is multiplied before it is differentiated, so that every cotangent on the way back
is; the sums of gradients are divided once, after all devices and microbatches have added to them
(Micikevicius et al. 2018). A power of two changes no digit of what neither under- nor overflows.
"""

import math

import jax
import jax.numpy as jnp

from jaxpar.core.errors import RequestError


def check_scale(scale: float) -> float:
    """The factor on the loss that `scale` asks for: itself, or 1 for 0, which is none.

    Raises:
        RequestError: for what is no power of two.
    """
    if scale == 0:
        return 1.0
    if not (0 < scale < math.inf and math.frexp(scale)[0] == 0.5):
        raise RequestError(
            f"loss_scale={scale}: a scale is 0 (none) or a power of two, so that it changes no "
            "digit of a gradient; use for example 1024"
        )
    return float(scale)


def means_of(totals, divisor: jax.Array, factor: float):
    """Gradients of the mean loss, from those of its total times `factor`.

    Args:
        totals: tree of summed gradients.
        divisor: of the whole batch's total, a scalar.
        factor: what the total was multiplied by.

    Returns:
        As `totals`; divided in at least float32.
    """

    def mean(total):
        wide = jnp.promote_types(total.dtype, jnp.float32)
        return (total.astype(wide) / (divisor.astype(wide) * factor)).astype(total.dtype)

    return jax.tree.map(mean, totals)
