"""The TracedLoss record: a model's loss as a jaxpr, and what its arguments and results are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.record import FIELD
from jaxpar.models.record import Mean

KEY = "random/key"
"""The path of the key that drives dropout."""


@dataclass(frozen=True)
class TracedLoss:
    """A loss as a jaxpr.

    Attributes:
        closed: from flat arguments to flat results.
        arguments: path -> abstract array, in the order of the jaxpr's arguments: parameters, other
            state, the batch (`FIELD` and the field's path), and `KEY` where it is trained.
        tree: of the first results, (Mean, {name: Mean}).
        state: paths of the other results, the state after the call.
        weights: paths of what is learned, and of what would be if it were not frozen.
        says: what a person should know of the trace, a sentence each.
    """

    closed: ClosedJaxpr
    arguments: Mapping[str, jax.ShapeDtypeStruct]
    tree: Any
    state: tuple[str, ...]
    weights: tuple[str, ...]
    says: tuple[str, ...] = ()

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return any(eqn.primitive.name == "random_bits" for eqn, _ in equations(self.closed))

    @property
    def changes_state(self) -> bool:
        """Whether it leaves other state than it finds, as batch statistics do."""
        jaxpr = self.closed.jaxpr
        before = dict(zip(self.arguments, jaxpr.invars, strict=True))
        after = jaxpr.outvars[self.tree.num_leaves :]
        return any(before[p] is not v for p, v in zip(self.state, after, strict=True))

    def flat(self, parameters, state, batch, key) -> list[Any]:
        """One value for each argument of the jaxpr; `key` is None where none is taken."""
        keys = {} if key is None else {KEY: key}
        fields = {FIELD + name: value for name, value in batch.items()}
        values = {**parameters, **state, **fields, **keys}
        return [values[path] for path in self.arguments]

    def unflat(self, results) -> tuple[Mean, dict[str, Mean], dict[str, Any]]:
        """The loss, the metrics and the new state, of the jaxpr's results."""
        count = self.tree.num_leaves
        loss, metrics = jax.tree.unflatten(self.tree, results[:count])
        return loss, metrics, dict(zip(self.state, results[count:], strict=True))
