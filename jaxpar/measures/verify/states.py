"""Training states on their way between host memory, one device, and a layout's devices.

One device has the model's own weights; a layout may store some in pieces, and stacks of layers in
another order. What is compared is compared as the layout stores it, and told by the model's names.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.layout.record import Layout
from jaxpar.models.pieces import Cut, owners, pieces_of
from jaxpar.program.record import Program
from jaxpar.step.own_tree import OwnTree
from jaxpar.step.record import State

Arrays = Mapping[str, Any]


def to_host(tree: Any) -> Any:
    """A tree of arrays in host memory, random keys as their data."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if _is_key(x) else x), tree)


def put(host: Any, abstract: Any, shardings: Any) -> Any:
    """What `to_host` gave, on devices; in fresh buffers, because a step uses up its state."""

    def one(value, like, sharding):
        if _is_key(like):
            return jax.random.wrap_key_data(jax.device_put(np.array(value), sharding))
        return jax.device_put(np.array(value), sharding)

    return jax.tree.map(one, host, abstract, shardings)


def on_devices(program: Program, state: State) -> State:
    """One device's state, in host memory, on a layout's devices."""
    stored = state_as_stored(program.step.layout, state, program.step.state)
    return put(stored, program.step.state, program.state_shardings)


def state_as_stored(layout: Layout, state: State, like: State) -> State:
    """One device's state, in host memory, as a layout stores it.

    Args:
        layout: how it is stored.
        state: by the model's own weights.
        like: the abstract state that the layout's step carries.
    """
    own, lead = OwnTree.of(layout), _lead(layout)

    def kept(keys, value):
        path = own.path_at(keys)
        if path is None or value.shape[value.ndim - len(own.shapes[path]) :] != own.shapes[path]:
            return [value]
        if path in own.cuts:
            return own.apart(path, value, value.ndim - len(own.shapes[path])).parts
        # A history in front of a stack of layers is no stack: its layers are where they were.
        return [_in_order(layout, path, value, value.ndim - len(own.shapes[path]))]

    leaves = jax.tree_util.tree_leaves_with_path(state.optimizer)
    flat = [np.asarray(part) for keys, value in leaves for part in kept(keys, value)]
    outer = {what: arrays_as_stored(layout, values, 0) for what, values in state.outer.items()}
    return replace(
        state,
        parameters=arrays_as_stored(layout, state.parameters, lead),
        model_state=arrays_as_stored(layout, state.model_state, lead),
        optimizer=jax.tree.unflatten(jax.tree.structure(like.optimizer), flat),
        outer=outer,
    )


def arrays_as_stored(layout: Layout, arrays: Arrays, lead: int | None = None) -> dict[str, Any]:
    """Arrays by path of a weight, in host memory, as a layout stores them.

    `lead` is the number of dims in front of a weight's own; None for that of a layout's gradients,
    which replicas of local SGD have each their own of.
    """
    lead = _lead(layout) if lead is None else lead
    stored = {}
    for path, value in arrays.items():
        cut = layout.model.cuts.get(path)
        if cut is not None:
            parts = Cut(cut.dim + lead, cut.sizes).of(value)
            names = pieces_of(path, layout.model.cuts)
            stored |= {n: np.asarray(p) for n, p in zip(names, parts, strict=True)}
        else:
            stored[path] = _in_order(layout, path, value, lead)
    return stored


def arrays_as_written(layout: Layout, arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays by path of storage, such as gradients, in host memory by path of a weight."""
    lead, owner, written = _lead(layout), owners(layout.model.cuts), {}
    for path, value in arrays.items():
        if path not in owner:
            order = layout.order_of(path)
            back = None if order is None else np.argsort(order)
            written[path] = value if back is None else np.take(value, back, axis=lead)
        elif owner[path] not in written:
            cuts = layout.model.cuts
            parts = [arrays[piece] for piece in pieces_of(owner[path], cuts)]
            written[owner[path]] = np.concatenate(parts, cuts[owner[path]].dim + lead)
    return written


def named(arrays: Arrays) -> dict[str, Any]:
    """Arrays by name, random keys as their data."""
    return {path: jax.random.key_data(v) if _is_key(v) else v for path, v in arrays.items()}


def arrays_of(state: State) -> dict[str, Any]:
    """Every number of a state by path, random keys as their data."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = value
    return named(found)


def _in_order(layout: Layout, path: str, value: Any, lead: int) -> Any:
    """A stack of layers in the order in which the layout stores it; anything else as it is."""
    order = layout.order_of(path) if path in layout.parameters else None
    return value if order is None else np.take(np.asarray(value), order, axis=lead)


def _lead(layout: Layout) -> int:
    """Dims that every array of a step's state has in front: one of replicas of local SGD."""
    return 1 if layout.strategy.averaging else 0


def _is_key(value: Any) -> bool:
    """Whether a value is a typed random key."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
