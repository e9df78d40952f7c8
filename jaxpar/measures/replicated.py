"""Replicated state: arrays of the optimizer and of the model that every device has whole.

A strategy that shards optimizer state shards what mirrors a parameter. An optimizer may hold more
(a history of gradients, factors of a matrix, all parameters as one vector), and so may a model
(running averages of weights, a codebook, a cache). What of that stays replicated costs its bytes on
every device, and is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of
from jaxpar.layout.record import Layout
from jaxpar.models.pieces import weight_named
from jaxpar.program.fit import device_bytes
from jaxpar.step.record import Step

OPTIMIZER, MODEL = "optimizer state", "model state"
_FIELDS = {OPTIMIZER: "optimizer", MODEL: "model_state"}
"""What a `State` calls each group."""
NOTABLE_ELEMENTS = 16_384
"""Arrays with fewer elements are only added up, as those that `fsdp` leaves replicated."""


@dataclass(frozen=True)
class Replicated:
    """One array of the state that is sharded over none of the axes that it could be.

    Attributes:
        group: `OPTIMIZER` or `MODEL`.
        path: where it is in the state, `optimizer/0/mu/...`.
        shape: of the whole array.
        bytes: of it on each device.
        axes: the mesh axes over which others like it are sharded.
        is_unasked: whether no parameter of that shape stays replicated too, which the layout's
            notes would tell.
    """

    group: str
    path: str
    shape: tuple[int, ...]
    bytes: int
    axes: tuple[str, ...]
    is_unasked: bool


def replicated(step: Step) -> tuple[Replicated, ...]:
    """The replicated arrays of a step's optimizer and model state, most bytes first.

    Empty where nothing of a group was asked to be sharded. Small arrays are in it too; random keys
    and scalars are not.
    """
    layout = step.layout
    groups = (
        (OPTIMIZER, step.state.optimizer, step.state_specs.optimizer, "optimizer_state"),
        (MODEL, step.state.model_state, step.state_specs.model_state, "stored"),
    )
    found = [
        one
        for group, arrays, specs, what in groups
        if (axes := _asked(layout, what))
        for one in _replicated(layout, group, arrays, specs, axes, what)
    ]
    return tuple(sorted(found, key=lambda one: (-one.bytes, one.path)))


def notable(found: tuple[Replicated, ...], layout: Layout) -> tuple[Replicated, ...]:
    """Those large enough to be listed one by one."""
    least = min(layout.strategy.whole_below or NOTABLE_ELEMENTS, NOTABLE_ELEMENTS)
    return tuple(one for one in found if prod(one.shape) >= least)


def _asked(layout: Layout, what: str) -> tuple[str, ...]:
    """The mesh axes over which the strategy shards parameters in their `what`."""
    specs = [getattr(array, what) for array in layout.parameters.values()]
    axes = {axis for spec in specs for entry in spec for axis in axes_of(entry)}
    return tuple(axis for axis in layout.mesh.axes if axis in axes and layout.mesh.size(axis) > 1)


def _replicated(
    layout: Layout, group: str, arrays: Any, specs: Any, axes: tuple[str, ...], what: str
) -> list[Replicated]:
    """The arrays of one group that none of `axes` shards."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    told = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    # A parameter that stays replicated is in the layout's notes, and so is what mirrors it.
    known = {a.shape for a in layout.parameters.values() if not _over(getattr(a, what), axes)}
    # Replicas of local SGD have each its own, along one more dim.
    lead = int(layout.strategy.averaging is not None)
    found = []
    for (path, leaf), spec in zip(leaves, told, strict=True):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if is_key or prod(leaf.shape[lead:]) <= 1 or _over(spec, axes):
            continue
        name = weight_named(f"{_FIELDS[group]}/{path_of(path)}", layout.model.cuts)
        count = device_bytes(leaf, spec, layout.mesh)
        unasked = leaf.shape[lead:] not in known
        found.append(Replicated(group, name, tuple(leaf.shape), count, axes, unasked))
    return found


def _over(spec: PartitionSpec, axes: tuple[str, ...]) -> bool:
    """Whether a spec shards anything over one of these axes."""
    return any(axis in axes for entry in spec for axis in axes_of(entry))


def path_of(path: tuple[Any, ...]) -> str:
    """JAX's keys of a leaf as one path, `a/0/b`."""
    keys = [str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path]
    return "/".join(keys)
