"""A training state on its way between host memory and devices, in the order a layout stores it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.layout.record import Layout
from jaxpar.program.record import Program
from jaxpar.step.record import State


def on_devices(program: Program, state: State) -> State:
    """A host state on the program's devices; fresh buffers, because a step uses up its state."""

    def put(value, abstract, sharding):
        if _is_key(abstract):
            return jax.random.wrap_key_data(jax.device_put(value, sharding))
        return jax.device_put(np.array(value), sharding)

    leaves = as_stored(program.step.layout, arrays_of(state))
    state = jax.tree.unflatten(jax.tree.structure(state), leaves.values())
    return jax.tree.map(put, state, program.step.state, program.state_shardings)


def as_stored(layout: Layout, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name, stacks of layers (and moments of them) in the order the layout stores."""
    orders = {path: order for path in layout.parameters if (order := layout.order_of(path))}
    return {
        name: next(
            (
                np.take(np.asarray(value), order, axis=0)
                for path, order in orders.items()
                if f"/{name}".endswith(f"/{path}") and value.shape == layout.parameters[path].shape
            ),
            value,
        )
        for name, value in arrays.items()
    }


def to_host(state: State) -> State:
    """The whole state in host memory, random keys as their data."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if _is_key(x) else x), state)


def _is_key(value) -> bool:
    """Whether a value is a typed random key."""
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def arrays_to_host(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Arrays by path as numpy arrays."""
    return {path: np.asarray(value) for path, value in arrays.items()}


def named_state(state: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Model state, its random keys as their data."""
    return {path: jax.random.key_data(v) if _is_key(v) else v for path, v in state.items()}


def arrays_of(state: State) -> dict[str, jax.Array]:
    """Every number of a state by path, random keys as their data."""
    named = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named[name] = jax.random.key_data(value) if _is_key(value) else value
    return named
