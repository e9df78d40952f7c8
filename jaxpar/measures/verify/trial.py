"""The comparisons that a layout's step is put through, each a Check."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxpar.measures.verify.compare import HONEST, MOST, MOST_OF_A_STATE, Check, compare, relative
from jaxpar.measures.verify.simulation import every_of
from jaxpar.measures.verify.states import (
    Arrays,
    arrays_as_stored,
    arrays_as_written,
    arrays_of,
    named,
    state_as_stored,
    to_host,
)
from jaxpar.models.pieces import piece_named, weight_named
from jaxpar.program.record import Program
from jaxpar.step.record import State


@dataclass(frozen=True)
class Side:
    """One side of a comparison after some steps: what runs, its placed batch, and what it made.

    Attributes:
        runs: a Program, or a Reference or Simulation of one device.
        batch: on its devices.
        state, metrics, gradients: of the last step.
    """

    runs: Any
    batch: Any
    state: State
    metrics: Mapping[str, Any]
    gradients: Mapping[str, Any]

    @classmethod
    def of(cls, runs: Any, state: State, batch: Any) -> "Side":
        """The side after a step from `state`, which is used up."""
        return cls(runs, batch, *runs.probe(state, batch))

    def after_another(self, state: State) -> "Side":
        """The side after one more step, from `state`."""
        return Side.of(self.runs, state, self.batch)


@dataclass(frozen=True)
class Trial:
    """A layout's compiled step on trial, and what it is judged by.

    Attributes:
        candidate: the step.
        bounds: largest relative error by kind of check.
        own: name of a check -> name of an array -> one device's own rounding of it, see `rounding`.
    """

    candidate: Program
    bounds: Mapping[str, float]
    own: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def states(
        self, name: str, right: State, got: State, bound: float, *, norms: State | None = None
    ) -> Check:
        """Two states compared; `right`, and what errors are relative to, as one device has them."""
        sizes = None if norms is None else self.stored(norms)
        return self._compared(name, self.stored(right), arrays_of(got), bound, norms=sizes)

    def first_step(self, one: Side, many: Side, gradients: Arrays) -> list[Check]:
        """Gradients, loss and model state of the first step; `gradients` are one device's."""
        layout, bounds = self.candidate.step.layout, self.bounds
        stored = arrays_as_stored(layout, gradients)
        checks = [self._compared("gradient", stored, many.gradients, bounds["gradient"])]
        checks.append(self._losses("loss", 1, [(many, one)]))
        if one.state.model_state:
            right = arrays_as_stored(layout, to_host(dict(one.state.model_state)))
            got = named(many.state.model_state)
            checks.append(self._compared("model state", right, got, bounds["gradient"]))
        return checks

    def update(self, start: State, one: Side, many: Side) -> Check:
        """The layout's update against one device's from the same gradients.

        Relative to the size of the update itself.
        """
        gradients = to_host(dict(many.gradients))
        written = arrays_as_written(self.candidate.step.layout, gradients)
        loss, right = np.asarray(many.metrics["loss"]), one.runs
        after = right.apply(right.placed(start), written, one.state.model_state, loss)
        after = to_host(after)
        moved = {p: after.parameters[p] - start.parameters[p] for p in start.parameters}
        sizes = replace(after, parameters=moved)
        return self.states("update", after, many.state, self.bounds["update"], norms=sizes)

    def steps(self, one: Side, many: Side, steps: int, unjudged: frozenset[str]) -> list[Check]:
        """Losses over some steps, and the state after them; both sides have done the first.

        Where `unjudged` weights, by path of storage, have gone is not looked at: their gradients
        are rounding.
        """
        averaging = self.candidate.step.layout.strategy.averaging
        sides, seen = (one, many), []
        states = tuple(side.state for side in sides)
        for done in range(1, steps + 1):
            if done > 1:
                sides = tuple(s.after_another(x) for s, x in zip(sides, states, strict=True))
            seen.append(sides[::-1])
            states = tuple(side.state for side in sides)
            if averaging and done % every_of(averaging) == 0:
                states = tuple(s.runs.average(x) for s, x in zip(sides, states, strict=True))
        right, got = states
        judged = {
            name: value
            for name, value in self.stored(to_host(right)).items()
            if not any(f"/{piece_named(name)}".endswith(f"/{path}") for path in unjudged)
        }
        bound = self.bounds["steps"]
        return [
            self._losses(f"loss over {steps} steps", steps, seen),
            self._compared(
                f"state after {steps} steps", judged, arrays_of(got), bound, most=MOST_OF_A_STATE
            ),
        ]

    def stored(self, state: State) -> dict[str, Any]:
        """One device's state, in host memory, by the names and in the pieces of the layout's."""
        step = self.candidate.step
        return arrays_of(state_as_stored(step.layout, state, step.state))

    def _losses(self, name: str, count: int, pairs: list[tuple[Side, Side]]) -> Check:
        """The worst relative error of the losses of (layout, one device)."""
        errors = [relative(a.metrics["loss"], b.metrics["loss"]) for a, b in pairs]
        own = self.own.get(name, {}).get("loss", 0.0)
        # A loss near zero is known no better than one device knows it, however many digits that is.
        bound = max(self.bounds["loss"], HONEST * own)
        worst = np.nan if np.isnan(errors).any() else max(errors)
        own = own if bound > self.bounds["loss"] else 0.0
        return Check(name, count, "loss", float(worst), bound, own_rounding=own)

    def _compared(self, name, right, got, bound, *, norms=None, most=MOST) -> Check:
        """A Check that tells the worst array by the model's own name of it."""
        own = self.own.get(name, {})
        check = compare(name, right, got, bound, norms=norms, own=own, most=most)
        return replace(check, worst=self._told(check.worst))

    def _told(self, name: str) -> str:
        """What a person calls an array."""
        return weight_named(name, self.candidate.step.layout.model.cuts)
