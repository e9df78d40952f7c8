"""A stage's layers as chunks, which it passes one at a time, and their gradients as one stack."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.varying import varying
from jaxpar.layout.stages import AXIS
from jaxpar.schedules.record import Schedule
from jaxpar.step.pipeline.buffers import vary


def chunked(stack: jax.Array, schedule: Schedule, layers: int) -> jax.Array:
    """This stage's own layers of a stack, as (chunks, layers a chunk, ...).

    A stack whose layers do not divide by the pieces came replicated: it is padded with zeros, and
    the stage takes its pieces out of it.
    """
    if layers % schedule.pieces == 0:
        return stack.reshape(schedule.chunks, -1, *stack.shape[1:])
    each = -(-layers // schedule.pieces)
    fill = [(0, each * schedule.pieces - layers), *[(0, 0)] * (stack.ndim - 1)]
    pieces = jnp.pad(stack, fill).reshape(schedule.chunks, schedule.stages, each, *stack.shape[1:])
    return lax.dynamic_index_in_dim(pieces, lax.axis_index(AXIS), 1, keepdims=False)


def unchunked(gradient: jax.Array, schedule: Schedule, parameter: jax.Array) -> jax.Array:
    """The gradient of the stack from that of this stage's layers: `chunked` the other way."""
    each, after = gradient.shape[1], gradient.shape[2:]
    if schedule.chunks * each == parameter.shape[0]:
        return gradient.reshape(-1, *after)
    pieces = vary(
        jnp.zeros((schedule.chunks, schedule.stages, *gradient.shape[1:]), gradient.dtype),
        varying(gradient),
    )
    pieces = lax.dynamic_update_index_in_dim(pieces, gradient, lax.axis_index(AXIS), 1)
    return pieces.reshape(-1, *after)[: parameter.shape[0]]
