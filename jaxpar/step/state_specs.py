"""How every array of a step's state is sharded between steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpar.jaxprs.piecewise import Pieces
from jaxpar.layout.record import Array, Layout
from jaxpar.models.pieces import pieces_of
from jaxpar.step.own_tree import OwnTree
from jaxpar.step.record import State


def state_specs(layout: Layout, state: State) -> State:
    """A PartitionSpec for each array of an abstract state.

    Optimizer state that stands at a parameter's place in the parameters' own tree, whatever
    optimizer keeps it, is sharded along the dims that it has of the parameter: all of them, those
    behind a history of it, or those that a factored moment keeps. All else is replicated.
    """
    own = OwnTree.of(layout)

    def spec(keys: tuple[Any, ...], leaf: Any) -> Any:
        path = own.path_at(keys)
        if path is None:
            return jax.tree.map(lambda _: PartitionSpec(), leaf)
        arrays = [layout.parameters[piece] for piece in pieces_of(path, own.cuts)]
        if not isinstance(leaf, Pieces):
            return _spec_of(leaf.shape, arrays[0]) if path not in own.cuts else PartitionSpec()
        parts = zip(leaf.parts, arrays, strict=True)
        return Pieces(tuple(_spec_of(part.shape, array) for part, array in parts), leaf.dim)

    return State(
        step=PartitionSpec(),
        parameters={path: a.stored for path, a in layout.parameters.items()},
        model_state={path: a.stored for path, a in layout.state.items()},
        optimizer=jax.tree_util.tree_map_with_path(
            spec, state.optimizer, is_leaf=lambda node: isinstance(node, Pieces)
        ),
        key=PartitionSpec(),
    )


def _spec_of(shape: Sequence[int], array: Array) -> PartitionSpec:
    """How optimizer state of this shape is sharded, kept for a parameter.

    Of several ways to read a factored moment the first is taken: any is right, and they differ only
    between dims of one size.
    """
    more = len(shape) - len(array.shape)
    if more >= 0 and tuple(shape[more:]) == array.shape:
        return PartitionSpec(*[None] * more, *array.optimizer_state)
    for kept in combinations(range(len(array.shape)), len(shape)) if shape else ():
        if tuple(array.shape[dim] for dim in kept) == tuple(shape):
            entries = (*array.optimizer_state, *[None] * len(array.shape))
            return PartitionSpec(*(entries[dim] for dim in kept))
    return PartitionSpec()
