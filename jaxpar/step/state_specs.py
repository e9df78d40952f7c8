"""How every array of a step's state is sharded between steps."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpar.layout.record import Layout
from jaxpar.step.record import State


def state_specs(layout: Layout, state: State) -> State:
    """A PartitionSpec for each array of an abstract state.

    Optimizer state that holds one entry a parameter mirrors the parameters, whatever optimizer made
    it; an entry of another shape (factored) is replicated.
    """
    arrays = layout.parameters

    def optimizer_specs(node):
        if not _mirrors(node, arrays):
            return PartitionSpec()
        return {
            path: jax.tree.map(
                lambda m, a=arrays[path]: (
                    a.optimizer_state if m.shape == a.shape else PartitionSpec()
                ),
                entry,
            )
            for path, entry in node.items()
        }

    return State(
        step=PartitionSpec(),
        parameters={path: a.stored for path, a in arrays.items()},
        model_state={path: a.stored for path, a in layout.state.items()},
        optimizer=jax.tree.map(
            optimizer_specs, state.optimizer, is_leaf=lambda node: _mirrors(node, arrays)
        ),
        key=PartitionSpec(),
    )


def _mirrors(node: Any, parameters: Any) -> bool:
    """Whether a node of optimizer state has one entry a parameter."""
    return isinstance(node, dict) and node.keys() == parameters.keys()
