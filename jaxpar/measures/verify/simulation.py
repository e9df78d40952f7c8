"""Parameter averaging on one device: separate plain runs, and numpy's mean of what they come to.

The reference that `verify` holds a strategy with averaging to, since such a strategy computes not
what one device does but what replicas do that synchronise now and then. Nothing of
`jaxpar.step.averaging` is used: each run is the plain step on its own rows, and the outer step is
written out here.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.hardware.record import Hardware
from jaxpar.layout.record import Layout
from jaxpar.measures.verify.reference import Reference, reference
from jaxpar.step.record import State, Step
from jaxpar.strategies.record import REPLICA, Averaging

SYNCHRONISATIONS = 2
"""Synchronisations while replicas are judged: from the second on the outer momentum counts."""


def every_of(averaging: Averaging) -> int:
    """Updates between synchronisations while judged: 1 if it is so in training, else 2.

    Neither an update nor an averaging depends on how many come between, which is training's to
    count; with 2 the replicas differ in their optimizer state too.
    """
    return 1 if averaging.every == 1 else 2


@dataclass(frozen=True)
class Simulation:
    """Runs on one device, with those parts of a `Reference` that `verify` asks.

    Attributes:
        alone: one device's reference for one run's rows.
        averaging: how the runs are averaged.
        runs: how many there are.
    """

    alone: Reference
    averaging: Averaging
    runs: int

    @property
    def algorithm(self) -> str:
        """What is simulated, for people."""
        every = every_of(self.averaging)
        return f"parameter averaging: {self.runs} runs that synchronise every {every} updates"

    def init(self, seed: int = 0) -> State:
        """One run's first state for all, each with a dropout key of its own."""
        first = self.alone.init(seed)
        state = _stacked([first] * self.runs)
        outer = {}
        if not self.averaging.plain:
            rest = {p: np.zeros(v.shape, v.dtype) for p, v in first.parameters.items()}
            outer = {"anchor": first.parameters, "momentum": rest}
        keys = [jax.random.fold_in(first.key, run) for run in range(self.runs)]
        return replace(state, step=first.step, key=jnp.stack(keys), outer=outer)

    def placed(self, state: State) -> State:
        """A state in host memory, on the device."""
        return self.alone.placed(state)

    def place(self, batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """A batch as one placed batch a run, rows in order."""
        shares = {name: np.split(rows, self.runs) for name, rows in batch.items()}
        return [
            self.alone.place({name: share[run] for name, share in shares.items()})
            for run in range(self.runs)
        ]

    def probe(self, state: State, batch: list[dict[str, Any]]):
        """Each run's (state, metrics, gradients) after its own update, stacked."""
        runs = [self.alone.probe(self._run(state, r), rows) for r, rows in enumerate(batch)]
        new, metrics, gradients = (_stacked(list(x)) for x in zip(*runs, strict=True))
        return replace(new, step=runs[0][0].step, outer=state.outer), metrics, gradients

    def apply(self, state: State, gradients, model_state, loss) -> State:
        """The state after each run's update by its own optimizer."""
        new = [
            self.alone.apply(self._run(state, r), *_own((gradients, model_state, loss), r))
            for r in range(self.runs)
        ]
        return replace(_stacked(new), step=new[0].step, outer=state.outer)

    def average(self, state: State) -> State:
        """All runs after an outer step from their last average; floats of their state averaged."""
        means = {path: _mean(values) for path, values in state.parameters.items()}
        outer = state.outer
        if not self.averaging.plain:
            anchor, momentum = ({p: np.asarray(v) for p, v in outer[k].items()} for k in outer)
            rate, keep = self.averaging.outer_rate, self.averaging.outer_momentum
            fallen = {p: anchor[p] - means[p] for p in means}
            momentum = {p: keep * momentum[p] + fallen[p] for p in means}
            means = {p: anchor[p] - rate * (fallen[p] + keep * momentum[p]) for p in means}
            outer = {"anchor": means, "momentum": momentum}
        statistics = {
            path: self._repeated(_mean(values))
            for path, values in state.model_state.items()
            if jnp.issubdtype(values.dtype, jnp.floating)
        }
        return replace(
            state,
            parameters={path: self._repeated(mean) for path, mean in means.items()},
            model_state={**state.model_state, **statistics},
            outer=outer,
        )

    def _run(self, state: State, run: int) -> State:
        """The state of one run."""
        return replace(_own(replace(state, step=None, outer={}), run), step=state.step)

    def _repeated(self, mean: np.ndarray) -> np.ndarray:
        """`mean` once for each run, stacked."""
        return np.stack([mean] * self.runs)


def simulation(layout: Layout, step: Step, hardware: Hardware) -> Simulation:
    """The runs that a layout with averaging has to equal, by the optimizer of `step` on trial."""
    runs = layout.mesh.size(REPLICA)
    alone = reference(
        layout.model.with_batch_size(layout.model.batch_size // runs),
        optimizer=step.optimizer,
        microbatches=step.microbatches,
        hardware=hardware,
    )
    assert layout.strategy.averaging is not None, layout.strategy.name
    return Simulation(alone, layout.strategy.averaging, runs)


def mistake_in(check: str) -> str:
    """What most likely went wrong where this check of replicas of local SGD failed."""
    if check == "initial state":
        return "replicas do not start from the same parameters, or share a dropout key"
    if check in ("gradient", "loss", "model state"):
        return (
            "a replica's gradient is not that of its own rows and its own weight: rows were shared "
            "out otherwise, or something was summed over the replicas"
        )
    if check == "update":
        return (
            "a replica's update is not that of its own optimizer state: replicas were mixed in the "
            "optimizer"
        )
    return (
        "an update of every replica is right, and their synchronisation is not: a replica was left "
        "out of the mean or counted twice, the outer step was taken otherwise, or optimizer state "
        "was averaged too"
    )


def _mean(values) -> np.ndarray:
    """The mean over the leading dim, by numpy."""
    return np.mean(np.asarray(values), axis=0)


def _own(tree, run: int):
    """One run's entries of arrays stacked by run."""
    return jax.tree.map(lambda x: x[run], tree)


def _stacked(trees: list):
    """A tree whose arrays are those of `trees` stacked along a new leading dim."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
