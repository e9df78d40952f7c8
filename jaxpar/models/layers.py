"""What a decoder's blocks are made of: parameters with named dims, norms, dropout, rotary angles.

Shape suffixes as in `transformer`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def param(rngs: nnx.Rngs, init, shape: tuple[int, ...], dims: tuple[str, ...]) -> nnx.Param:
    """A float32 parameter drawn by `init`, with a name for each dim."""
    return nnx.Param(init(rngs.params(), shape, jnp.float32), out_sharding=dims)


def normal(scale: float) -> Any:
    """An initializer that draws with this standard deviation."""
    return nnx.initializers.normal(scale)


def along(value: jax.Array, x: jax.Array) -> jax.Array:
    """`value`, of the last dims of `x`, with as many dims as it has."""
    return jnp.expand_dims(value, range(x.ndim - value.ndim))


def biased(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """`x` and a bias of its last dims, if there is one."""
    return x if bias is None else x + along(bias[...].astype(x.dtype), x)


ZEROS, ONES = nnx.initializers.zeros_init(), nnx.initializers.ones_init()


class Norm(nnx.Module):
    """Root-mean-square or layer norm over the residual width, statistics in at least float32."""

    def __init__(self, config: Any, rngs: nnx.Rngs):
        """`config` says `width`, `norm`, `norm_epsilon` and `bias`, as `Transformer` does."""
        self.scale = param(rngs, ONES, (config.width,), ("embed",))
        self.shift = (
            param(rngs, ZEROS, (config.width,), ("embed",))
            if config.norm == "layer" and config.bias
            else None
        )
        self.centred, self.epsilon = config.norm == "layer", config.norm_epsilon

    def __call__(self, x_BSD: jax.Array) -> jax.Array:
        """Normalise the last dim."""
        wide = x_BSD.astype(jnp.promote_types(x_BSD.dtype, jnp.float32))
        if self.centred:
            # Times one, where a cast does nothing: in backward all that the norm makes of `wide` is
            # then added up before it joins the residual's cotangent. Joined term by term, a mean's
            # last, XLA:CPU adds up the cotangents of all later layers again wherever one is read.
            wide = 1.0 * wide
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        power = jnp.mean(wide * wide, axis=-1, keepdims=True)
        y = wide * jax.lax.rsqrt(power + self.epsilon) * along(self.scale[...], wide)
        return biased(y, self.shift).astype(x_BSD.dtype)


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest, so that the mean stays."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def rotate(x_BSKCH: jax.Array, base: float, at_S: jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021): turn halves of head_dim against each other by position.

    `at_S` says where the rows stand.
    """
    wide = jnp.promote_types(x_BSKCH.dtype, jnp.float32)
    half = x_BSKCH.shape[-1] // 2
    rate_H = base ** (-jnp.arange(half, dtype=wide) / half)
    angle_SH = at_S.astype(wide)[:, None] * rate_H[None]
    angle_BSKCH = along(angle_SH[:, None, None, :], x_BSKCH)
    cos, sin = (f(angle_BSKCH).astype(x_BSKCH.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x_BSKCH[..., :half], x_BSKCH[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
