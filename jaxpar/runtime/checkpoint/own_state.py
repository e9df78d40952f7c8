"""A state as a checkpoint holds it: its author's own tree, and the way back into a layout.

On disk parameters are Flax's nested tree with whole matrices and layers in the network's order, as
Orbax and Flax read them without jaxpar. How a layout stores them (weights in pieces, stages' layers
side by side, replicas of local SGD) stays out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.jaxprs.piecewise import Pieces
from jaxpar.models.pieces import Cut
from jaxpar.step.own_tree import OwnTree, plain_keys
from jaxpar.step.record import State, Step
from jaxpar.step.restacked import in_own_order, in_stored_order

Tree = dict[Any, Any]
"""Nested dicts of arrays."""

PARAMETERS, MODEL_STATE, OPTIMIZER = "params", "model_state", "optimizer"
REST, REPLICAS = "rest", "replicas"
PARTS = (PARAMETERS, MODEL_STATE, OPTIMIZER, REST, REPLICAS)
"""The parts of a checkpoint. The rest is the step, the random key and what replicas keep together.
Replicas of local SGD keep parameters and model state of their own, beside their mean."""


def own_state(step: Step, state: State) -> dict[str, Tree]:
    """The parts of a checkpoint of a state; traceable.

    Parameters and model state of replicas are their mean; each one's own are a part beside, and
    have the replicas in front, as optimizer state does.
    """
    return _parts(step, state, _Arrays(step))


def own_specs(step: Step) -> dict[str, Tree]:
    """How each array of the parts is sharded, as `own_state` leaves it."""
    return _parts(step, step.state_specs, _Specs(step))


def abstract_parts(step: Step) -> dict[str, Tree]:
    """The parts as jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda state: own_state(step, state), step.state)


def stored_state(step: Step, parts: Mapping[str, Tree]) -> State:
    """The state of a step, given the parts of a checkpoint; traceable."""
    own, lead = OwnTree.of(step.layout), _lead(step)
    kept = parts[REPLICAS] if lead else parts
    flat, tree = jax.tree_util.tree_flatten_with_path(step.state.optimizer, is_leaf=_is_pieces)
    optimizer = [
        _as_stored(step, own, keys, like, _at(parts[OPTIMIZER], _names(keys)), lead)
        for keys, like in flat
    ]
    module_state = {p: step.layout.module.keys[p] for p in step.layout.state}
    rest = parts[REST]
    return replace(
        step.state,
        step=rest["step"],
        parameters=_ordered(step, own.stored(own.by_path(kept[PARAMETERS])), lead),
        model_state={
            path: as_key(_at(kept[MODEL_STATE], plain_keys(keys)), step.state.model_state[path])
            for path, keys in module_state.items()
        },
        optimizer=jax.tree.unflatten(tree, optimizer),
        key=as_key(rest["key"], step.state.key),
        outer={what: own.stored(own.by_path(rest[what])) for what in step.state.outer},
    )


def stored_parameters(step: Step, tree: Tree) -> dict[str, Any]:
    """The parameters of a step, given Flax's own tree of them; traceable.

    Each replica of local SGD gets the same.
    """
    own = OwnTree.of(step.layout)
    stored = _ordered(step, own.stored(own.by_path(tree)), 0)
    if not _lead(step):
        return stored
    return {
        path: jnp.broadcast_to(x, step.state.parameters[path].shape) for path, x in stored.items()
    }


def mean_of(x: Any) -> Any:
    """Of the replicas' arrays the mean; of what is no float the first."""
    return jnp.mean(x, axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0]


def _ordered(step: Step, parameters: Mapping[str, Any], lead: int) -> dict[str, Any]:
    """Parameters by path of storage, stacks of layers in the order of the stages."""
    stored = step.layout.parameters
    return {
        path: in_stored_order(step.layout, path, x, stored[path].stored, lead)
        for path, x in parameters.items()
    }


def _parts(step: Step, state: State, form: _Arrays | _Specs) -> dict[str, Tree]:
    """The parts of a state, or of a State of PartitionSpecs."""
    own = OwnTree.of(step.layout)
    flat = jax.tree_util.tree_flatten_with_path(state.optimizer, is_leaf=form.is_leaf)[0]
    optimizer: Tree = {}
    for keys, leaf in flat:
        _put(optimizer, _names(keys), form.mirrored(own, keys, leaf))
    model_state: Tree = {}
    for path in step.layout.state:
        keys = plain_keys(step.layout.module.keys[path])
        _put(model_state, keys, form.number(state.model_state[path]))
    rest = {"step": state.step, "key": form.number(state.key)}
    for what, values in state.outer.items():
        rest[what] = own.nested(form.whole(own, values, 0))
    found = {
        PARAMETERS: own.nested(form.whole(own, state.parameters, form.lead)),
        MODEL_STATE: model_state,
    }
    if form.lead:
        one = {
            name: jax.tree.map(form.mean, part, is_leaf=form.is_leaf)
            for name, part in found.items()
        }
        found = {**one, REPLICAS: found}
    return {**found, OPTIMIZER: optimizer, REST: rest}


class _Arrays:
    """What becomes of arrays."""

    def __init__(self, step: Step):
        self.step, self.layout, self.lead = step, step.layout, _lead(step)

    def is_leaf(self, node: Any) -> bool:
        """Whether a node of optimizer state is one array of a person's."""
        return _is_pieces(node)

    def number(self, x: Any) -> Any:
        """An array that a file can hold: of a random key, its data."""
        return jax.random.key_data(x) if _is_key(x) else x

    def mean(self, x: Any) -> Any:
        """Of the replicas' arrays."""
        return mean_of(x)

    def whole(self, own: OwnTree, stored: Mapping[str, Any], lead: int) -> dict[str, Any]:
        """Path of a weight -> its whole array, of arrays by path of storage."""
        ordered = {
            path: in_own_order(self.layout, path, x, self.step.state_specs.parameters[path], lead)
            for path, x in stored.items()
        }
        return {path: _joined(x, lead) for path, x in own.whole(ordered).items()}

    def mirrored(self, own: OwnTree, keys: tuple[Any, ...], leaf: Any) -> Any:
        """An array of optimizer state, whole and in the network's order if it mirrors a weight."""
        path = own.path_at(keys)
        if isinstance(leaf, Pieces) or path is None or path in own.cuts:
            return self.number(_joined(leaf, self.lead))
        if leaf.ndim - self.lead != len(own.shapes[path]):
            return leaf
        spec = self.layout.parameters[path].optimizer_state
        return in_own_order(self.layout, path, leaf, spec, self.lead)


class _Specs:
    """What becomes of the PartitionSpecs of those arrays: pieces of a weight all have one."""

    def __init__(self, step: Step):
        self.lead = _lead(step)

    def is_leaf(self, node: Any) -> bool:
        """Whether a node is one array's."""
        return isinstance(node, Pieces | PartitionSpec)

    def number(self, spec: Any) -> Any:
        """Of a random key's data, as of the key: its own dim is replicated."""
        return spec

    def mean(self, spec: Any) -> Any:
        """Of the replicas' mean."""
        return PartitionSpec(*spec[1:])

    def whole(self, own: OwnTree, stored: Mapping[str, Any], lead: int) -> dict[str, Any]:
        """Path of a weight -> its PartitionSpec."""
        return {path: _one(spec) for path, spec in own.whole(stored).items()}

    def mirrored(self, own: OwnTree, keys: tuple[Any, ...], leaf: Any) -> Any:
        """Of an array of optimizer state."""
        return _one(leaf)


def _one(spec: Any) -> PartitionSpec:
    """The PartitionSpec of pieces, each of which the sharded dims divide."""
    return spec.parts[0] if isinstance(spec, Pieces) else spec


def _joined(value: Any, lead: int) -> Any:
    """An array, put together if it is in pieces; their dim does not count the replicas'."""
    return lax.concatenate(value.parts, value.dim + lead) if isinstance(value, Pieces) else value


def _as_stored(step: Step, own: OwnTree, keys: Any, like: Any, value: Any, lead: int) -> Any:
    """An array of optimizer state, in pieces and in the stages' order where `like` is."""
    path = own.path_at(keys)
    if isinstance(like, Pieces) and path is not None:
        return Pieces(Cut(like.dim + lead, own.cuts[path].sizes).of(value), like.dim)
    if path is None or path in own.cuts or value.ndim - lead != len(own.shapes[path]):
        return as_key(value, like)
    spec = step.layout.parameters[path].optimizer_state
    return in_stored_order(step.layout, path, value, spec, lead)


def _lead(step: Step) -> int:
    """Dims in front of every array of the state: one of replicas of local SGD."""
    return 1 if step.layout.strategy.averaging else 0


def _is_pieces(node: Any) -> bool:
    """Whether a node of a tree is an array in pieces."""
    return isinstance(node, Pieces)


def _is_key(x: Any) -> bool:
    """Whether an array, or its shape, is of typed random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def as_key(x: Any, like: Any) -> Any:
    """An array, as random keys where `like` is."""
    if not _is_key(like):
        return x
    # JAX tells the implementation of keys, not of their shape: so of keys that are traced.
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), like)
    return jax.random.wrap_key_data(x, impl=found[0])


def _names(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """JAX's keys of a leaf as keys of nested dicts."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _put(tree: Tree, keys: tuple[Any, ...], value: Any) -> None:
    """Set what stands at nested keys."""
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1] if keys else ""] = value


def _at(tree: Tree, keys: tuple[Any, ...]) -> Any:
    """What stands at nested keys."""
    for key in keys or ("",):
        tree = tree[key]
    return tree
