"""Experts with dense dispatch: each token is weighed over all of them, the top two kept."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import tokens


class Experts(nnx.Module):
    def __init__(self, width, hidden, count, *, rngs):
        make = nnx.initializers.lecun_normal()
        self.router = nnx.Linear(width, count, use_bias=False, rngs=rngs)
        self.up = nnx.Param(make(rngs.params(), (count, width, hidden)))
        self.down = nnx.Param(make(rngs.params(), (count, hidden, width)))

    def __call__(self, x):
        scores = jax.nn.softmax(self.router(x))
        least = jax.lax.top_k(scores, 2)[0][..., -1:]
        gates = jnp.where(scores >= least, scores, 0)
        y = nnx.gelu(jnp.einsum("bsd,edf->bsef", x, self.up[...]))
        return jnp.einsum("bsef,efd,bse->bsd", y, self.down[...], gates)


class Network(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(64, 16, rngs=rngs)
        self.norm = nnx.RMSNorm(16, rngs=rngs)
        self.experts = Experts(16, 32, 4, rngs=rngs)
        self.head = nnx.Linear(16, 64, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        return self.head(x + self.experts(self.norm(x)))


def loss(model, batch):
    logits = model(batch["ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()


def in_nnx():
    return jaxpar.model(Network, loss, tokens())
