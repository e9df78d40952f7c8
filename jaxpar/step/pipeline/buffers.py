"""The buffers of a device between ticks: slots for what waits, sums of what is done.

Slots are arrays with a leading dim; which slot is used when is the timetable's business.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.varying import as_varying


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buffers:
    """What a device keeps between ticks, as arrays on that device.

    Attributes:
        x, dy, y: trees like the activation, of (slots, ...): activations and gradients that wait
            for their turn, and results of the last piece that wait for their loss.
        kept: what forward passes keep for backward, [(slots, layers a chunk, ...)].
        rest, layers: gradients so far, as the parameters of `Local`.
        means: the loss and the metrics so far.
        idle: idle ticks so far, a float32 scalar.
    """

    x: Any
    dy: Any
    y: Any
    kept: Any
    rest: Any
    layers: Any
    means: Any
    idle: Any


def vary(tree: Any, axes) -> Any:
    """`tree` with its arrays cast to a type that may differ between devices along `axes`."""
    return jax.tree.map(lambda x: as_varying(x, axes), tree)


def at(stack, index):
    """The entry at `index` of the leading dim of every array of a tree; below 0 is taken as 0."""
    index = jnp.maximum(index, 0)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), stack)


def add(stack, value, index):
    """A stack of arrays with `value` added to the one at `index`."""
    return lax.dynamic_update_index_in_dim(stack, at(stack, index) + value, index, 0)


def put(stack, value, slot):
    """`stack` with `value` in a slot; as it was if `slot` is below 0 or `value` is None."""

    def one(slots, new):
        if slots.shape[0] == 0:
            return slots
        kept = jnp.where(slot >= 0, new, at(slots, slot))
        return lax.dynamic_update_index_in_dim(slots, kept, jnp.maximum(slot, 0), 0)

    return stack if value is None else jax.tree.map(one, stack, value)
