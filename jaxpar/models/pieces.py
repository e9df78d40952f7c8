"""Weights that are stored as several arrays: the pieces along one dim of what its author made one.

Pieces are storage. A person's tree, their optimizer and what is reported have the weight whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import jax
from jax import lax


@dataclass(frozen=True)
class Cut:
    """The dim along which a weight is stored in pieces, and their sizes."""

    dim: int
    sizes: tuple[int, ...]

    def of(self, array: Any) -> tuple[Any, ...]:
        """The pieces of an array, or of its shape."""
        if isinstance(array, jax.ShapeDtypeStruct):
            return tuple(
                jax.ShapeDtypeStruct(
                    (*array.shape[: self.dim], size, *array.shape[self.dim + 1 :]), array.dtype
                )
                for size in self.sizes
            )
        runs = pairwise((0, *accumulate(self.sizes)))
        return tuple(lax.slice_in_dim(array, *run, axis=self.dim) for run in runs)


def pieces_of(path: str, cuts: Mapping[str, Cut]) -> list[str]:
    """The paths of a weight's pieces; of one that is not cut, its own.

    >>> pieces_of("qkv/kernel", {"qkv/kernel": Cut(1, (4, 2))})
    ['qkv/kernel/0', 'qkv/kernel/1']
    """
    return [f"{path}/{k}" for k in range(len(cuts[path].sizes))] if path in cuts else [path]


def piece_named(name: str) -> str:
    """The name of an array, that of a piece in optimizer state as a piece of a weight is called."""
    return re.sub(r"/parts/(\d+)$", r"/\1", name)


def weight_named(name: str, cuts: Mapping[str, Cut]) -> str:
    """What a person calls an array of a state or a gradient: by the weight's name, not a piece's.

    >>> weight_named("optimizer/0/mu/qkv/kernel/parts/1", {"qkv/kernel": Cut(1, (4, 2))})
    'optimizer/0/mu/qkv/kernel'
    """
    name = piece_named(name)
    for piece, path in owners(cuts).items():
        if f"/{name}".endswith(f"/{piece}"):
            return f"{name.removesuffix(piece)}{path}"
    return name


def owners(cuts: Mapping[str, Cut]) -> dict[str, str]:
    """The path of each piece -> that of the weight that it is of."""
    return {piece: path for path in cuts for piece in pieces_of(path, cuts)}
