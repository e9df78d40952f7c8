"""A plain perceptron."""

import flax.linen as nn
import jax
import optax
from flax import nnx

import jaxpar
from plain._batches import vectors


class MLP(nnx.Module):
    def __init__(self, widths=(12, 32, 24, 32, 5), *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in zip(widths, widths[1:], strict=False)]
        )

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class LinenMLP(nn.Module):
    widths: tuple = (32, 24, 32, 5)

    @nn.compact
    def __call__(self, x):
        for width in self.widths[:-1]:
            x = jax.nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


def loss(model, batch):
    logits = model(batch["x"])
    values = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return values.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def in_nnx():
    return jaxpar.model(MLP, loss, vectors())


def in_linen():
    return jaxpar.model(LinenMLP(), loss, vectors())
