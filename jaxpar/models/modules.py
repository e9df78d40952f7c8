"""A Flax module taken apart into structure, learned values and other state, and put together.

The only place that knows how Flax keeps variables. What is learned is told from the rest by Flax's
own types, unless the model says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx
from jax.extend.core import Literal

from jaxpar.core.paths import paths_of
from jaxpar.core.source_lines import line_of
from jaxpar.models.record import Model


@dataclass(frozen=True)
class Parts:
    """A module taken apart: its graph, its variables by path, and Flax's own keys of a path."""

    graph: Any
    parameters: Mapping[str, nnx.Variable]
    state: Mapping[str, nnx.Variable]
    keys: Mapping[str, tuple[Any, ...]]

    def put_together(self, parameters: Mapping[str, Any], state: Mapping[str, Any]) -> nnx.Module:
        """The module holding these values, given by path."""
        filled = [
            nnx.from_flat_state(
                [(self.keys[path], _holding(v, values[path])) for path, v in variables.items()]
            )
            for variables, values in ((self.parameters, parameters), (self.state, state))
        ]
        return nnx.merge(self.graph, *filled)


def take_apart(module: nnx.Module, trainable: Any = nnx.Param) -> Parts:
    """Split a module into structure, what is learned and other state.

    Args:
        module: any NNX module.
        trainable: a Flax filter of what is learned.
    """
    graph, parameters, state = nnx.split(module, trainable, ...)
    groups = [nnx.to_flat_state(part) for part in (parameters, state)]
    keys = [own for group in groups for own, _ in group]
    paths = paths_of(_flat(own) for own in keys)
    known = dict(zip(keys, paths, strict=True))
    learned, other = (MappingProxyType({known[own]: v for own, v in group}) for group in groups)
    return Parts(graph, learned, other, MappingProxyType(dict(zip(paths, keys, strict=True))))


def values_of(variables: Mapping[str, nnx.Variable]) -> dict[str, jax.Array]:
    """The arrays in a mapping of variables."""
    return {path: value_of(v) for path, v in variables.items()}


def value_of(leaf: Any) -> jax.Array:
    """The array in a variable, or a bare array that a module holds as an attribute."""
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def refill(module: nnx.Module, parts: Parts, values: Mapping[str, Any]) -> None:
    """Set the state of a module to these values by path, in place.

    Args:
        module: as it was taken apart.
        parts: what it was taken apart into.
        values: path -> array, for all of `parts.state`.
    """
    pairs = [(parts.keys[path], _holding(v, values[path])) for path, v in parts.state.items()]
    nnx.update(module, nnx.from_flat_state(pairs))


def build(model: Model, seed: Any) -> nnx.Module:
    """Build the module; `seed` is an integer under `eval_shape` or a key under `jit`."""
    # Flax would try to place each variable on a mesh at once; here names are only names.
    with nnx.use_eager_sharding(False):
        return model.build(nnx.Rngs(seed))


def abstract(model: Model) -> Parts:
    """The module taken apart, its arrays as shapes: nothing is allocated."""
    structure = []

    def make():
        # Taken apart while its arrays are arrays: Flax would take bare shapes for structure.
        parts = take_apart(build(model, 0), model.trainable)
        structure.append((parts.graph, parts.keys))
        return dict(parts.parameters), dict(parts.state)

    parameters, state = map(MappingProxyType, jax.eval_shape(make))
    graph, keys = structure[-1]
    return Parts(graph, parameters, state, keys)


def lines_of_variables(model: Model) -> dict[str, str]:
    """Path -> the line of the person's code that made a variable; "" where none is known."""
    paths: list[str] = []

    def make():
        parts = take_apart(build(model, 0), model.trainable)
        values = values_of(parts.parameters)
        paths.extend(values)
        return list(values.values())

    jaxpr = jax.make_jaxpr(make)().jaxpr
    lines = {var: line_of(eqn.source_info) for eqn in jaxpr.eqns for var in eqn.outvars}
    return {
        path: "" if isinstance(var, Literal) else lines.get(var, "")
        for path, var in zip(paths, jaxpr.outvars, strict=True)
    }


def names_in_metadata(leaf: Any) -> tuple[str | None, ...] | None:
    """What Flax's partitioning metadata calls each dim of a variable, or None if it has none.

    A dim over several mesh axes has the names of all of them.
    """
    if not isinstance(leaf, nnx.Variable):
        return None
    names = leaf.get_metadata().get("out_sharding")
    return None if names is None else tuple(map(_name_of, names))


def _name_of(said: Any) -> str | None:
    """One name for a dim, None where nothing that is a name was said."""
    if isinstance(said, tuple | list):
        return "+".join(map(str, said)) or None
    return said if isinstance(said, str) else None


def _flat(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """Flax's keys of a variable, those that are tuples one by one."""
    return tuple(part for key in keys for part in (key if isinstance(key, tuple) else (key,)))


def _holding(variable: Any, value: Any) -> Any:
    """A Flax variable of the same kind and metadata that holds `value`."""
    return jax.tree.unflatten(jax.tree.structure(variable), [value])
