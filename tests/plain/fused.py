"""Transformers that make queries, keys and values, or a gate and what it gates, in one product."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import images, tokens

WIDTH, HEADS = 16, 4


class Layer(nnx.Module):
    """As vision transformers are mostly written: three matrices in one, told apart by an index."""

    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.gated = nnx.Linear(WIDTH, 2 * 32, rngs=rngs)
        self.down = nnx.Linear(32, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        rows, count, _ = x.shape
        made = self.qkv(self.norm1(x)).reshape(rows, count, 3, HEADS, WIDTH // HEADS)
        q, k, v = made.transpose(2, 0, 3, 1, 4)
        scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (WIDTH // HEADS) ** 0.5)
        y = (self.dropout(scores) @ v).swapaxes(1, 2).reshape(rows, count, WIDTH)
        x = x + self.out(y)
        gate, up = jnp.split(self.gated(self.norm2(x)), 2, axis=-1)
        return x + self.down(nnx.silu(gate) * up)


class Vision(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(3, WIDTH, (2, 2), strides=(2, 2), rngs=rngs)
        self.layers = nnx.List([Layer(rngs), Layer(rngs)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, image):
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, WIDTH)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(axis=1))


class LinenLayer(nn.Module):
    """As language models are: by `split`."""

    @nn.compact
    def __call__(self, x, _):
        made = nn.Dense(3 * WIDTH)(nn.LayerNorm()(x))
        q, k, v = (
            y.reshape(*x.shape[:-1], HEADS, WIDTH // HEADS) for y in jnp.split(made, 3, axis=-1)
        )
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        x = x + nn.Dense(WIDTH)(y)
        made = nn.Dense(2 * 32, use_bias=False)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(made[..., :32] * nn.gelu(made[..., 32:])), None


class Language(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(64, WIDTH)(ids)
        layers = nn.scan(
            nn.remat(LinenLayer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = layers()(x, None)
        return nn.Dense(64)(x)


def in_nnx():
    def loss(model, batch):
        logits = model(batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return jaxpar.model(Vision, loss, images())


def in_linen():
    def loss(model, batch):
        logits = model(batch["ids"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()

    return jaxpar.model(Language, loss, tokens())
