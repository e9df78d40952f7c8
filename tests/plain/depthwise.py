"""Depthwise and dilated convolutions between group norms: what XLA's partitioner gets wrong alone.

Under plain data parallelism the gradient of a depthwise filter is one device's share of it (jax
0.10.2); under a law of jaxpar's it is whole.
"""

import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import images


class Depthwise(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=2, rngs=rngs)
        self.each = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.up = nnx.Conv(8, 16, (1, 1), rngs=rngs)
        self.down = nnx.Conv(16, 8, (3, 3), kernel_dilation=2, rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = x + self.down(nnx.silu(self.up(self.each(x))))
        return self.head(jnp.mean(x, axis=(1, 2)))


def loss(model, batch):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def in_nnx():
    return jaxpar.model(Depthwise, loss, images(side=4))
