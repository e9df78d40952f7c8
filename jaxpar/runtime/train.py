"""Train: batches in, steps, metrics out, the test split last; the device never waits for Python.

Metrics are read one step late, so that the next step is already queued when the last one's loss is
fetched. Batches depend on (seed, step) alone. Nothing is copied between host and devices by
accident: the loop runs under JAX's transfer guard.
"""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError, expect, words_of
from jaxpar.core.progress import here
from jaxpar.data.record import Dataset
from jaxpar.program.configuration import refuse_settings
from jaxpar.program.out_of_memory import memory_told
from jaxpar.program.record import Program
from jaxpar.program.rows import replicated
from jaxpar.runtime.checkpoint.restoring import Restored, restore
from jaxpar.runtime.evaluate import evaluate, evaluation_notes, training_notes
from jaxpar.runtime.health import NotFinite, Spikes, check_finite, first_not_finite
from jaxpar.runtime.keeper import Keeper
from jaxpar.runtime.metrics_file import writer
from jaxpar.runtime.outcome import Outcome, TrainingStopped
from jaxpar.runtime.reading import check_data, read_batch
from jaxpar.runtime.several import good_checkpoint
from jaxpar.runtime.training import Training
from jaxpar.step.record import State

MOST_RESTORED = 3
"""How often a run goes back to a checkpoint before it is given up."""


def train(
    program: Program,
    data: Dataset,
    training: Training,
    *,
    state: State | Restored | None = None,
    watch: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    metrics_file: str | Path | None = None,
    checkpoints: str | Path | None = None,
    asked_to_stop: Callable[[int], bool] = lambda step: False,
) -> Outcome:
    """Train for `training.steps` steps, from `state` or from fresh parameters.

    Args:
        program: compiled for devices that are here.
        data: what to train on, and to test on if it has a test split.
        training: steps, seed, how often to look at the test split and to save.
        state: where to go on from, or what `restore` read; its `step` picks the batches, so nothing
            is replayed. Used up.
        watch: called with (step, metrics) a step after it ran; tests come as `test_...` entries.
        metrics_file: a JSON line is appended for every call of `watch`.
        checkpoints: a folder for this run's checkpoints alone; None keeps none. One is always
            written at the end.
        asked_to_stop: asked after each step; training that is to stop saves, and ends early.

    Raises:
        RequestError: for what cannot be trained.
        TrainingStopped: for an error after the first step, of the data, of `watch` or of the disk,
            or for a loss that is no finite number; it has what was trained.
    """
    left_out = state.left_out if isinstance(state, Restored) else 0
    state = state.state if isinstance(state, Restored) else state
    _check(program, data, training, state)
    expect("train's watch", watch, Callable, "give a function of a step and its metrics")
    expect("train's asked_to_stop", asked_to_stop, Callable, "give a function of a step")
    with ExitStack() as closing:
        keeper = None
        if checkpoints is not None:
            keeper = Keeper(program, data, training, checkpoints)
            closing.callback(keeper.close)
        write = writer(metrics_file)
        start = program.init(training.seed) if state is None else state

        def tell(step: int, metrics: dict[str, float]) -> None:
            watch(step, metrics)
            write({"step": step, **metrics})

        run = _Run(program, data, training, start, tell, keeper, left_out)
        try:
            run.whole(asked_to_stop)
        except Exception as error:  # of a person's data or `watch`, or of the disk
            if run.done == run.begun:
                raise
            raise run.stopped(error) from error
        return run.outcome()


def _check(program: Program, data: Dataset, training: Training, state: State | None) -> None:
    """Refuse what cannot be trained, before anything is written."""
    expect("train's program", program, Program, "jaxpar.compile_step(step, hardware=...) makes one")
    expect("train's training", training, Training, "jaxpar.Training(steps=...) makes one")
    if state is not None:
        program.takes.check_state(state)
    refuse_settings()
    check_data(program.step.layout.model, data)
    if training.evaluate_every and data.walk is None:
        raise RequestError(
            f"evaluate_every={training.evaluate_every}, and data '{data.name}' has no test split: "
            "give it one, or leave evaluate_every out"
        )


class _Run:
    """The place reached in training: the one thing here that changes."""

    def __init__(self, program, data, training, state, tell, keeper, left_out):
        self.program, self.data, self.training, self.state = program, data, training, state
        self.tell, self.keeper, self.left_out = tell, keeper, left_out
        self.begun = self.done = int(jax.device_get(state.step))
        self.finished = False
        self.spikes, self.restored = Spikes(), 0
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()
        self.waiting: tuple[int, Any] | None = None
        self.started = time.perf_counter()
        self.stepped_seconds = self.saved_seconds = 0.0

    def whole(self, asked_to_stop: Callable[[int], bool]) -> None:
        """The steps, the last test and the last checkpoint, and what is to be known of them."""
        told = memory_told(self.program.step.layout.model.name, self.program.hardware)
        with told, jax.transfer_guard("disallow"):
            self.steps(asked_to_stop)
            if self.finished:
                self.last_test()
            self.keep_last()
        self.notes += training_notes(self.program)
        if self.test:
            self.notes += evaluation_notes(self.program, self.data)

    def stopped(self, error: Exception) -> TrainingStopped:
        """What is raised for an error in the middle, with what was trained until then."""
        self.settle()
        kind = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
        outcome = self.outcome()
        kept = "in Python, this error's `outcome` has what was trained"
        if outcome.checkpoint:
            kept = f"the last good checkpoint is {outcome.checkpoint}"
        return TrainingStopped(
            f"training stopped after step {self.done} of {self.training.steps} "
            f"({kind}{words_of(error)}); {kept}",
            outcome,
        )

    def steps(self, asked_to_stop: Callable[[int], bool]) -> None:
        """All steps, and the tests and checkpoints between them, until it is asked to stop."""
        while self.done < self.training.steps:
            try:
                self._step()
                if asked_to_stop(self.done):
                    break
                if self.done == self.training.steps:
                    self._hear()
            except NotFinite as error:
                self._go_back(error)
        self._hear()
        self.finished = self.done >= self.training.steps
        self.stepped_seconds = time.perf_counter() - self.started - self.saved_seconds

    def _step(self) -> None:
        """One step, and what is due after it."""
        model, every, training = (
            self.program.step.layout.model,
            self.training.evaluate_every,
            self.training,
        )
        rows = read_batch(
            self.data,
            self.done + self.left_out,
            model,
            seed=training.seed,
            rows=self.program.local_rows,
        )
        self.state, metrics = self.program.update(self.state, self.program.place(rows))
        self.done += 1
        if _synchronises(self.program, self.done, training.steps):
            self.state = self.program.average(self.state)
        waiting, self.waiting = self.waiting, (self.done, metrics)
        if waiting:
            self._tell(waiting)
        if self.done == training.steps:
            return
        test: dict[str, float] = {}
        if every and self.done % every == 0:
            test = _as_test(evaluate(self.program, self.state, self.data))
            self.tell(self.done, test)
        if self.keeper and self.keeper.is_due(self.done):
            self._hear()
            began = time.perf_counter()
            self._keep(test)
            self.saved_seconds += time.perf_counter() - began

    def last_test(self) -> None:
        """The test split after the last step, where there is one."""
        if self.data.walk is not None:
            self.test = evaluate(self.program, self.state, self.data)
            self.tell(self.training.steps, _as_test(self.test))

    def keep_last(self) -> None:
        """Save the last state, where states are kept."""
        if self.keeper:
            self._keep(_as_test(self.test), self.keeper.finish)
            self.notes += tuple(self.keeper.notes)

    def saved(self) -> Path | None:
        """The newest checkpoint of this run that is whole, once what is being written is."""
        if not self.keeper:
            return None
        self.keeper.wait()
        return self.keeper.last()

    def settle(self) -> None:
        """Read the metrics of the last step, which nobody has been told of, unless it failed."""
        if self.waiting:
            with suppress(RuntimeError):
                self.last = _told(self.waiting)
                self.first = self.first or self.last

    def outcome(self) -> Outcome:
        """What training came to by now."""
        seconds = time.perf_counter() - self.started
        steps = self.done - self.begun
        rate = steps / (self.stepped_seconds or seconds)
        units = math.prod(self.data.fields.get("weight", ((), ""))[0])
        return Outcome(
            steps=steps,
            seconds=seconds,
            steps_per_second=rate,
            units_per_second=rate * self.program.step.layout.model.batch_size * units,
            unit=self.data.unit,
            first=self.first,
            last=self.last,
            test=self.test,
            state=self.state,
            notes=(*self.notes, *self.spikes.notes()),
            finished=self.finished,
            checkpoint=self.saved(),
        )

    def _hear(self) -> None:
        """Tell the metrics of the last step, if nobody has been told of them."""
        waiting, self.waiting = self.waiting, None
        if waiting:
            self._tell(waiting)

    def _tell(self, waiting: tuple[int, Any]) -> None:
        """Tell the metrics of a step that has run; a loss that is not finite is refused."""
        step, self.last = waiting[0], _told(waiting)
        self.first = self.first or self.last
        self.tell(step, self.last)
        self.spikes.see(step, self.last["loss"])
        check_finite(step, self.last, self.state.parameters)

    def _keep(self, test: dict[str, float], save: Callable[..., None] | None = None) -> None:
        """Save the state, unless a parameter of it is not finite."""
        if (path := first_not_finite(self.state.parameters)) is not None:
            raise NotFinite(f"after step {self.done} '{path}' is not finite", self.done)
        with here.long_work("saving a checkpoint"):
            (save or self.keeper.save)(self.state, self.done, self.last | test, self.left_out)
        good_checkpoint(str(self.keeper.last() or ""))

    def _go_back(self, error: NotFinite) -> None:
        """Go on from the last checkpoint, with the batches since left out, if that is wanted."""
        if self.training.on_nan != "restore":
            raise error
        saved = self.saved()
        if saved is None or self.restored == MOST_RESTORED:
            why = "there is no checkpoint yet" if saved is None else "it was restored before"
            raise NotFinite(f"{error}; on_nan=restore cannot help, since {why}", error.step)
        found = restore(self.program, saved.parent)
        reached, self.waiting = self.done + self.left_out, None
        self.state, self.done = found.state, found.metadata.step
        self.left_out, self.restored = reached - self.done, self.restored + 1
        gone = self.left_out - found.left_out
        self.notes += (f"{error}: went back to step {self.done} and left out {gone} batches",)


def _synchronises(program: Program, done: int, steps: int) -> bool:
    """Whether replicas synchronise after so many updates: every few, and after the last."""
    averaging = program.step.layout.strategy.averaging
    if averaging is None:
        return False
    return done == steps or bool(averaging.every and done % averaging.every == 0)


def _told(waiting: tuple[int, Any]) -> dict[str, float]:
    """The metrics of a step; of replicas of local SGD the mean over all of them."""
    here = jax.device_get({name: _held_here(metric) for name, metric in waiting[1].items()})
    return {name: float(np.mean(value)) for name, value in here.items()}


def _held_here(metric: jax.Array) -> Any:
    """A metric, sent to every process where each replica has its own on another one."""
    if metric.is_fully_replicated or metric.is_fully_addressable:
        return metric
    return replicated(metric)


def _as_test(means: dict[str, float]) -> dict[str, float]:
    """The same figures, named `test_...`."""
    return {f"test_{name}": value for name, value in means.items()}
