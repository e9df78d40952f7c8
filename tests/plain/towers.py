"""Two towers whose outputs are told apart over the whole batch."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxpar


class Tower(nnx.Module):
    def __init__(self, ins, *, rngs):
        self.up = nnx.Linear(ins, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        y = self.down(nnx.gelu(self.up(x)))
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


class Towers(nnx.Module):
    def __init__(self, *, rngs):
        self.picture, self.caption = Tower(20, rngs=rngs), Tower(12, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(1.0))

    def __call__(self, picture, caption):
        return jnp.exp(self.scale[...]) * self.picture(picture) @ self.caption(caption).T


class LinenTowers(nn.Module):
    @nn.compact
    def __call__(self, picture, caption):
        def tower(x):
            return nn.Dense(16)(nn.gelu(nn.Dense(32)(x)))

        scale = self.param("scale", nn.initializers.ones, ())
        return scale * tower(picture) @ tower(caption).T


def batch(rows=8):
    rng = np.random.default_rng(0)
    return {
        "picture": rng.standard_normal((rows, 20)).astype("float32"),
        "caption": rng.standard_normal((rows, 12)).astype("float32"),
    }


def loss(model, batch):
    scores = model(batch["picture"], batch["caption"])
    own = jnp.arange(scores.shape[0])
    across = optax.softmax_cross_entropy_with_integer_labels(scores, own)
    down = optax.softmax_cross_entropy_with_integer_labels(scores.T, own)
    return 0.5 * jnp.mean(across + down)


def in_nnx():
    return jaxpar.model(Towers, loss, batch())


def in_linen():
    return jaxpar.model(LinenTowers, loss, batch())
