"""A network whose weights are frozen, with low-rank additions that are learned."""

import optax
from flax import nnx

import jaxpar
from plain._batches import vectors


class Adapted(nnx.Module):
    def __init__(self, *, rngs):
        self.up = nnx.LoRA(12, 4, 32, base_module=nnx.Linear(12, 32, rngs=rngs), rngs=rngs)
        self.down = nnx.LoRA(32, 4, 5, base_module=nnx.Linear(32, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def loss(model, batch):
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def in_nnx():
    return jaxpar.model(Adapted, loss, vectors(), trainable=nnx.LoRAParam)
