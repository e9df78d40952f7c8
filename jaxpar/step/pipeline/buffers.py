"""The buffers of a device between ticks: slots for what waits, sums of what is done.

Slots are arrays with a leading dim; which slot is used when is the timetable's business.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.varying import as_varying, varying


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


def at(stack, *indices):
    """The entry at these indices of the leading dims of every array of a tree; below 0 is taken as
    0."""
    begin = [jnp.maximum(index, 0).astype(jnp.int32) for index in indices]

    def one(x):
        rest = x.shape[len(begin) :]
        from_first = [jnp.int32(0)] * len(rest)
        found = lax.dynamic_slice(x, [*begin, *from_first], [*[1] * len(begin), *rest])
        return found.reshape(rest)

    return jax.tree.map(one, stack)


def set_at(stack, value, *indices):
    """A stack of arrays with `value` as the entry at these indices of its leading dims."""
    begin = [jnp.maximum(index, 0).astype(jnp.int32) for index in indices]
    new = vary(value.reshape([1] * len(begin) + list(value.shape)), varying(stack))
    return lax.dynamic_update_slice(stack, new, begin + [jnp.int32(0)] * value.ndim)


def put(stack, value, slot):
    """`stack` with `value` in a slot; as it was if `slot` is below 0 or `value` is None."""

    def one(slots, new):
        if slots.shape[0] == 0:
            return slots
        kept = jnp.where(slot >= 0, new, at(slots, slot))
        return set_at(slots, kept, slot)

    return stack if value is None else jax.tree.map(one, stack, value)
