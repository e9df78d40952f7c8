"""A local array with the knowledge of which dims are sharded over which mesh axes.

A `Value` is there; a `Deferred` is not made yet, so that each use makes only its own shard.
Both are pytrees, so that they pass through `jax.checkpoint` and custom derivative rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax
import numpy as np

from jaxpar.core.mesh import axes_of as entry_axes

Placement = tuple[tuple[str, ...], ...]
"""For every dim the mesh axes it is sharded over, major to minor."""

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Value:
    """A local array placed as `dims`; `use`, when not None, is the placement it is gathered to
    before it is computed with (a weight stored sharded). `whose` is the path of that weight; None
    for an activation that arrives sharded, whose gather is kept for backward.
    """

    array: Any
    dims: Placement = field(metadata=_STATIC)
    use: Placement | None = field(default=None, metadata=_STATIC)
    whose: str | None = field(default=None, metadata=_STATIC)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Deferred:
    """A broadcast of `source`, or with no source an iota along dim `along`, of global `shape`.

    Made late, because a bias broadcast to the global batch and then sliced would sum the whole
    batch over devices in the backward pass, where the bias alone is enough.
    """

    source: Value | None
    shape: tuple[int, ...] = field(metadata=_STATIC)
    dims: Placement = field(metadata=_STATIC)
    where: tuple[int, ...] = field(metadata=_STATIC)
    dtype: Any = field(metadata=_STATIC)
    along: int | None = field(default=None, metadata=_STATIC)


def placement_of(spec, rank: int) -> Placement:
    """The placement that a PartitionSpec gives an array of this rank."""
    return tuple(entry_axes(entry) for entry in (*spec, *[None] * (rank - len(spec))))


def replicated(rank: int) -> Placement:
    """The placement of a replicated array of this rank."""
    return ((),) * rank


def axes_of(dims: Placement) -> frozenset[str]:
    """All mesh axes a placement uses."""
    return frozenset(axis for axes in dims for axis in axes)


def local_shape(shape: Sequence[int], dims: Placement, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one device's shard; every dim has to divide."""
    return tuple(
        size // prod(sizes[axis] for axis in axes) for size, axes in zip(shape, dims, strict=True)
    )


def literal(atom: Any) -> Value:
    """A number that is written in an equation, which every device holds whole."""
    return Value(np.asarray(atom.val, atom.aval.dtype), replicated(0))


def constant(array) -> Value:
    """A replicated value."""
    return Value(array, replicated(np.ndim(array)))
