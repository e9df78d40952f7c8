"""Weights from elsewhere as the start of a run: an Orbax checkpoint or a tree of such shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxpar.core.errors import RequestError, expect
from jaxpar.program.configuration import deliberate
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.folder import one_of, told_unread
from jaxpar.runtime.checkpoint.orbax_reading import shapes_there, tree_there
from jaxpar.runtime.checkpoint.own_state import (
    PARAMETERS,
    abstract_parts,
    own_specs,
    stored_parameters,
)
from jaxpar.step.record import State, Step

DEEPEST = 100
"""Dicts in dicts, of a tree of weights."""


def start_from(program: Program, weights: Any, *, seed: int = 0) -> State:
    """A fresh state with these weights: step 0, no optimizer state yet, random keys of the seed.

    Args:
        program: compiled for devices that are here.
        weights: Flax's own tree of parameters (what Linen's `init` has under "params", or
            `nnx.to_pure_dict` of NNX's), whole matrices of the model's shapes; or the folder of an
            Orbax checkpoint that holds it, or of one of jaxpar's, of which the newest is taken.
        seed: of all else.

    Raises:
        RequestError: naming the first weight that is missing, too many, or of another shape.
    """
    expect("start_from's program", program, Program, "jaxpar.compile_step(...) makes one")
    expect("start_from's weights", weights, Mapping | str | Path, "give a tree, or a folder")
    step = program.step
    wanted, specs = abstract_parts(step)[PARAMETERS], own_specs(step)[PARAMETERS]
    like = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(program.mesh, spec)
        ),
        wanted,
        specs,
    )
    with deliberate():
        if isinstance(weights, Mapping):
            _check_tree(weights)
            _check(_shapes(weights), wanted, "the weights")
            own = jax.tree.map(_placed, like, _as(like, weights))
        else:
            own = tree_there(folder_of_weights(step, weights), like)
        jax.block_until_ready(own)
        state = jax.block_until_ready(program.init(seed))
        return replace(state, parameters=_stored(program, step)(own))


def folder_of_weights(step: Step, weights: str | Path) -> Path:
    """The folder that Orbax wrote the weights of a step's model into; they are not read yet.

    Args:
        step: it need not be compiled.
        weights: the folder of an Orbax checkpoint, or of jaxpar's.

    Raises:
        RequestError: there is none, or its arrays are not the model's.
    """
    path = Path(weights)
    steps = one_of(path)
    there = steps[0].folder if steps else path
    with told_unread(there):
        folder = _tree_in(there, path)
    _check(shapes_there(folder), abstract_parts(step)[PARAMETERS], f"checkpoint {folder}")
    return folder


def _tree_in(folder: Path, path: Path) -> Path:
    """The folder of parameters in one that `path` named."""
    if (folder / PARAMETERS).is_dir():
        folder = folder / PARAMETERS
    if not folder.is_dir():
        raise RequestError(f"weights {path}: there is no such folder: name an Orbax checkpoint's")
    if not (folder / "_METADATA").is_file():
        raise RequestError(
            f"weights {path}: no tree of Orbax's is there: name the folder that has its _METADATA"
        )
    return folder


def _stored(program: Program, step: Step) -> Any:
    """The function from Flax's own tree to parameters as the layout stores them."""
    return jax.jit(
        partial(stored_parameters, step), out_shardings=program.state_shardings.parameters
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each array of nested dicts."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): np.shape(x) for keys, x in flat}


def _check(there: Mapping[str, tuple[int, ...]], wanted: Any, what: str) -> None:
    """Refuse weights that are not the model's; `what` they are is said."""
    own = _shapes(wanted)
    for name in sorted({*there, *own}):
        if there.get(name) != own.get(name):
            raise RequestError(
                f"{what}: '{name}' {_told(there.get(name))}, and in the model it "
                f"{_told(own.get(name))}: give the model's own tree, whole"
            )


def _check_tree(tree: Any, depth: int = 0) -> None:
    """Refuse what is no nested dicts of real numbers; a tree may come from anywhere."""
    if depth > DEEPEST:
        raise RequestError(f"the weights are nested more than {DEEPEST} deep: give Flax's own tree")
    if len({type(key) for key in tree}) > 1 or not all(isinstance(k, str | int) for k in tree):
        raise RequestError("the weights' names are not all words, or all numbers, in each dict")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _check_tree(value, depth + 1)
        elif hasattr(value, "dtype") and not _is_real(value.dtype):
            raise RequestError(f"the weights: '{key}' is of dtype {value.dtype}: give real numbers")


def _is_real(dtype: Any) -> bool:
    """Whether a dtype is of numbers that a weight can be made of."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _told(shape: tuple[int, ...] | None) -> str:
    """What is there of a weight."""
    return "is not there" if shape is None else f"has shape {tuple(shape)}"


def _as(like: Any, tree: Any) -> Any:
    """A tree of the same names, with the keys and in the order of `like`."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(keys, simple=True, separator="/"): x for keys, x in flat}
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(keys, simple=True, separator="/") for keys, _ in flat]
    return jax.tree.unflatten(structure, [named[name] for name in names])


def _placed(like: jax.ShapeDtypeStruct, value: Any) -> jax.Array:
    """An array on its devices, each of which gets its shard alone."""
    if isinstance(value, jax.Array):
        return jax.device_put(value.astype(like.dtype), like.sharding)
    with np.errstate(over="ignore"):  # what is too large is told when it is trained
        value = np.asarray(value).astype(jnp.dtype(like.dtype))
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
