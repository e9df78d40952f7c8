"""A vision transformer with a class token and learned positions."""

import flax.linen as nn
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import images


class Layer(nnx.Module):
    def __init__(self, width, heads, hidden, *, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width=16, side=8, patch=4):
        count = (side // patch) ** 2
        self.patches = nnx.Conv(3, width, (patch, patch), strides=(patch, patch), rngs=rngs)
        self.token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (1, 1, width)))
        self.position = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (1, count + 1, width))
        )
        self.layers = nnx.List([Layer(width, 4, 32, rngs=rngs)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, image):
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.position[...]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class LinenViT(nn.Module):
    width: int = 16

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(self.width, (4, 4), strides=(4, 4))(image)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(1):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
            y = nn.Dense(32)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(y))
        return nn.Dense(10)(nn.LayerNorm()(x)[:, 0])


def loss(model, batch):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def in_nnx():
    return jaxpar.model(ViT, loss, images())


def in_linen():
    return jaxpar.model(LinenViT, loss, images())
