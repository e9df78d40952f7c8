"""Which array of the state or the batch an argument or a result of a compiled update is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from jaxpar.core.mesh import axes_of
from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.values import Factor
from jaxpar.models.pieces import piece_named, weight_named
from jaxpar.models.record import role_of
from jaxpar.step.record import Step

PARAMETERS, OPTIMIZER, MODEL, BATCH, OTHER = (
    "parameters",
    "optimizer_state",
    "model_state",
    "batch",
    "other",
)
_GROUPS = {"parameters": PARAMETERS, "optimizer": OPTIMIZER, "model_state": MODEL, "outer": OTHER}


@dataclass(frozen=True)
class Place:
    """An array of the state, the batch or the metrics.

    Attributes:
        group: PARAMETERS, OPTIMIZER, MODEL, BATCH, or OTHER such as the count of steps.
        path: of the parameter, also for its optimizer state; else its own.
        name: its own path in the state.
        bytes: of all of it.
    """

    group: str
    path: str
    name: str
    bytes: int = 0


class Places:
    """The arrays that an update takes and gives.

    Attributes:
        step: whose update it is.
        results: in the order of the results of the program.
    """

    def __init__(self, step: Step, has_metrics: bool = True):
        """Of a step's update, or, without metrics, of its synchronisation of replicas."""
        self.step = step
        state = jax.tree_util.tree_leaves_with_path(step.state)
        batch = jax.tree_util.tree_leaves_with_path(dict(step.batch))
        self._by_name = {
            **{f"state{_spelled(path)}": self._place(path, leaf) for path, leaf in state},
            **{f"batch{_spelled(path)}": Place(BATCH, _simple(path), _simple(path))
               for path, _ in batch},
        }  # fmt: skip
        specs = jax.tree.leaves(step.state_specs, is_leaf=lambda leaf: isinstance(leaf, P))
        self._specs = {
            **{_simple(path): spec for (path, _), spec in zip(state, specs, strict=True)},
            **step.layout.batch,
        }
        names = len(step.traced.closed.jaxpr.outvars) - len(state)
        metrics = [Place(OTHER, "metrics", "metrics")] * (max(0, names) if has_metrics else 0)
        self.results = (*(self._place(path, leaf) for path, leaf in state), *metrics)

    def argument(self, i: Instruction) -> Place | None:
        """The array that an argument of the program is; None where its name does not tell."""
        return self._by_name.get(i.op_name.replace("\\'", "'").replace('\\"', '"'))

    def dims(self, i: Instruction) -> tuple[Factor, ...] | None:
        """The dims of an argument: their names where they are known, and how they are sharded."""
        place = self.argument(i)
        if place is None:
            return None
        spec, shape = self._specs[place.name], i.shapes[0][1]
        names, layout = ("",) * len(shape), self.step.layout
        array = layout.parameters.get(place.path) or layout.state.get(place.path)
        if place.group == BATCH and place.path in layout.model.batch:
            names = layout.model.batch[place.path].dims
        elif array is not None and len(array.shape) == len(shape):
            names = array.dims
        axes = [frozenset(axes_of(entry)) for entry in spec]
        if not len(axes) <= len(shape) == len(names):
            return None
        axes += [frozenset()] * (len(shape) - len(axes))
        return tuple(Factor(*told) for told in zip(map(str, names), shape, axes, strict=True))

    def _place(self, path: Any, leaf: Any) -> Place:
        """What a leaf of the state is."""
        name = _simple(path)
        group = _GROUPS.get(name.split("/", 1)[0], OTHER)
        inner = name.partition("/")[2]
        if group == OPTIMIZER:
            inner = self.owner_of(piece_named(inner))
        size = leaf.size * getattr(leaf.dtype, "itemsize", 4)
        return Place(group, inner or name, name, size)

    def owner_of(self, name: str) -> str:
        """The parameter that an array of the optimizer's state is of; "" for none."""
        parts = name.split("/")
        tails = ("/".join(parts[n:]) for n in range(len(parts)))
        return next((tail for tail in tails if tail in self.step.layout.parameters), "")

    def called(self, path: str) -> str:
        """What a person calls a parameter that a program has at a path."""
        return weight_named(path, self.step.layout.model.cuts)

    def module_of(self, path: str) -> str:
        """The module that a parameter is in, layers of a stack as `*`: "blocks/*/norm".

        A parameter that is in no module is its own.
        """
        if not path:
            return ""
        parts = ["*" if part.isdigit() else part for part in self.called(path).split("/")]
        if path in self._stacks:
            parts.insert(1, "*")
        return "/".join(parts[:-1]) or parts[0]

    @cached_property
    def _stacks(self) -> frozenset[str]:
        """The parameters that hold a layer each along their first dim."""
        layout = self.step.layout
        return frozenset(
            path
            for path, array in layout.parameters.items()
            if array.dims and role_of(layout.model, array.dims[0]) == "layers"
        )


def _spelled(path: Any) -> str:
    """A path as JAX names an argument after it."""
    return jax.tree_util.keystr(path)


def _simple(path: Any) -> str:
    """A path as people write it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
