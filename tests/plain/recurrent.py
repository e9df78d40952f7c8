"""An LSTM and a GRU, each through a scan over time."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import tokens


class Recurrent(nnx.Module):
    def __init__(self, cell, width=16, vocabulary=64, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.rnn = nnx.RNN(cell(width, 24, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(24, vocabulary, rngs=rngs)

    def __call__(self, ids):
        states: Any = self.rnn(self.embed(ids))
        return self.head(states)


class LinenRecurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(64, 16)(ids)
        return nn.Dense(64)(nn.RNN(self.cell(24))(x))


def loss(model, batch):
    logits = model(batch["ids"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]))


def lstm_in_nnx():
    return jaxpar.model(
        lambda rngs: Recurrent(nnx.OptimizedLSTMCell, rngs=rngs), loss, tokens(), name="lstm"
    )


def gru_in_nnx():
    return jaxpar.model(lambda rngs: Recurrent(nnx.GRUCell, rngs=rngs), loss, tokens(), name="gru")


def lstm_in_linen():
    return jaxpar.model(LinenRecurrent(nn.OptimizedLSTMCell), loss, tokens(), name="lstm")


def gru_in_linen():
    return jaxpar.model(LinenRecurrent(nn.GRUCell), loss, tokens(), name="gru")
