"""Experts that take turns: tokens sorted by expert, one ragged product for all of them."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import tokens


class Sorted(nnx.Module):
    def __init__(self, rngs):
        make = nnx.initializers.lecun_normal()
        self.embed = nnx.Embed(64, 16, rngs=rngs)
        self.router = nnx.Linear(16, 4, rngs=rngs)
        self.up = nnx.Param(make(rngs.params(), (4, 16, 32)))
        self.down = nnx.Param(make(rngs.params(), (4, 32, 16)))
        self.head = nnx.Linear(16, 64, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        flat = x.reshape(-1, x.shape[-1])
        scores = jax.nn.softmax(self.router(flat))
        chosen = jnp.argmax(scores, axis=-1)
        order = jnp.argsort(chosen)
        sizes = jnp.bincount(chosen, length=4)
        y = jax.lax.ragged_dot(flat[order], self.up[...], sizes)
        y = jax.lax.ragged_dot(nnx.gelu(y), self.down[...], sizes)
        y = jnp.zeros_like(flat).at[order].set(y) * jnp.max(scores, axis=-1, keepdims=True)
        return self.head(x + y.reshape(x.shape))


def loss(model, batch):
    logits = model(batch["ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()


def in_nnx():
    return jaxpar.model(Sorted, loss, tokens(rows=8, length=4))
