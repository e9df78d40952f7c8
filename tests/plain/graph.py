"""Message passing on graphs of one size: messages along edges, summed where they end."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxpar


def passed(x, edges, message):
    def one(nodes, ends):
        sent = message(jnp.concatenate([nodes[ends[0]], nodes[ends[1]]], axis=-1))
        return jax.ops.segment_sum(sent, ends[1], num_segments=nodes.shape[0])

    return jax.vmap(one)(x, edges)


class GraphNetwork(nnx.Module):
    def __init__(self, *, rngs):
        self.encode = nnx.Linear(6, 16, rngs=rngs)
        self.messages = nnx.List([nnx.Linear(32, 16, rngs=rngs) for _ in range(2)])
        self.updates = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
        self.decode = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, nodes, edges):
        x = nnx.relu(self.encode(nodes))
        for message, update in zip(self.messages, self.updates, strict=True):
            x = x + nnx.relu(update(passed(x, edges, message)))
        return self.decode(x.mean(axis=1))[..., 0]


class LinenGraphNetwork(nn.Module):
    @nn.compact
    def __call__(self, nodes, edges):
        x = jax.nn.relu(nn.Dense(16)(nodes))
        sent = jnp.take_along_axis(x, edges[:, 0, :, None], axis=1)
        sent = jax.nn.relu(nn.Dense(16)(sent))
        ends = jax.nn.one_hot(edges[:, 1], x.shape[1], axis=1)
        x = x + jnp.einsum("bne,bef->bnf", ends, sent)
        return nn.Dense(1)(x.mean(axis=1))[..., 0]


def batch(rows=8, nodes=7, edges=10):
    rng = np.random.default_rng(0)
    return {
        "nodes": rng.standard_normal((rows, nodes, 6)).astype("float32"),
        "edges": rng.integers(0, nodes, (rows, 2, edges)).astype("int32"),
        "energy": rng.standard_normal(rows).astype("float32"),
    }


def loss(model, batch):
    return jnp.mean((model(batch["nodes"], batch["edges"]) - batch["energy"]) ** 2)


def in_nnx():
    return jaxpar.model(GraphNetwork, loss, batch())


def in_linen():
    return jaxpar.model(LinenGraphNetwork, loss, batch())
