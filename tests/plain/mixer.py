"""An MLP-mixer: dense layers along positions and along channels, by turns."""

import flax.linen as nn
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import images


class Pair(nnx.Module):
    def __init__(self, width, hidden, *, rngs):
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.up(x)))


class Layer(nnx.Module):
    def __init__(self, *, rngs):
        self.norm1 = nnx.LayerNorm(16, rngs=rngs)
        self.across = Pair(16, 32, rngs=rngs)
        self.norm2 = nnx.LayerNorm(16, rngs=rngs)
        self.along = Pair(16, 64, rngs=rngs)

    def __call__(self, x):
        x = x + self.across(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.along(self.norm2(x))


class Mixer(nnx.Module):
    def __init__(self, *, rngs):
        self.patches = nnx.Conv(3, 16, (2, 2), strides=(2, 2), rngs=rngs)
        self.layers = nnx.List([Layer(rngs=rngs)])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, image):
        x = self.patches(image)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for layer in self.layers:
            x = layer(x)
        return self.head(jnp.mean(x, axis=1))


class LinenMixer(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.Conv(16, (2, 2), strides=(2, 2))(image)
        x = x.reshape(x.shape[0], -1, 16)
        for _ in range(1):
            y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
            y = nn.Dense(y.shape[-1])(nn.gelu(nn.Dense(32)(y)))
            x = x + jnp.swapaxes(y, 1, 2)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(10)(jnp.mean(x, axis=1))


def loss(model, batch):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def in_nnx():
    return jaxpar.model(Mixer, loss, images())


def in_linen():
    return jaxpar.model(LinenMixer, loss, images())
