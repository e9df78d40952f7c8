"""Train: batches in, steps, metrics out, the test split last; the device never waits for Python.

Metrics are read one step late, so that the next step is already queued when the last one's loss is
fetched. Batches depend on (seed, step) alone. Nothing is copied between host and devices by
accident: the loop runs under JAX's transfer guard.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError, expect, words_of
from jaxpar.core.kinds import MOST, whole
from jaxpar.data.record import Dataset
from jaxpar.layout.record import Layout
from jaxpar.models.pieces import pieces_of
from jaxpar.optimizers.record import Optimizer, Recipe, check_counts, make_optimizer
from jaxpar.program.configuration import refuse_settings
from jaxpar.program.out_of_memory import memory_told
from jaxpar.program.record import Program
from jaxpar.program.rows import replicated
from jaxpar.runtime.evaluate import evaluate, evaluation_notes, training_notes
from jaxpar.runtime.outcome import Outcome, TrainingStopped
from jaxpar.runtime.reading import check_data, read_batch
from jaxpar.step.loss_scale import check_scale
from jaxpar.step.own_tree import OwnTree
from jaxpar.step.record import State


@dataclass(frozen=True)
class Training(Recipe):
    """How long and how hard to train: a recipe for the optimizer, and what surrounds it.

    Attributes:
        microbatches: parts whose gradients are accumulated into one update.
        loss_scale: a power of two for compute in float16, 0 for none. An update that is not finite
            is then skipped and counted, and the twenty-first in a row is not skipped, so that a
            scale which always overflows shows in the loss.
        seed: of the parameters, the batches and dropout.
        evaluate_every: steps between looks at the test split; 0 looks only at the end.
    """

    microbatches: int = 1
    loss_scale: float = 0.0
    seed: int = 0
    evaluate_every: int = 0

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, microbatches=1, evaluate_every=0)
        whole("seed", self.seed, most=MOST)
        check_scale(self.loss_scale)


def optimizer_of(training: Training, layout: Layout, **options: Any) -> Optimizer:
    """The optimizer that `training` asks for, for the parameters of a layout.

    `options` are the rule's own, such as AdamW's `b2`. With a loss scale an update that is not
    finite is skipped.
    """
    own = OwnTree.of(layout)
    dims = {path: layout.parameters[pieces_of(path, own.cuts)[0]].dims for path in own.keys}
    return make_optimizer(training, own.nested(dims), skips=bool(training.loss_scale), **options)


def train(
    program: Program,
    data: Dataset,
    training: Training,
    *,
    state: State | None = None,
    watch: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    metrics_file: str | Path | None = None,
) -> Outcome:
    """Train for `training.steps` steps, from `state` or from fresh parameters.

    Args:
        program: compiled for devices that are here.
        data: what to train on, and to test on if it has a test split.
        training: steps, seed and how often to look at the test split.
        state: where to go on from; its `step` picks the batches, so nothing is replayed. Used up.
        watch: called with (step, metrics) a step after it ran; tests come as `test_...` entries.
        metrics_file: a JSON line is appended for every call of `watch`.

    Raises:
        RequestError: for what cannot be trained.
        TrainingStopped: for an error after the first step, of the data, of `watch` or of the disk;
            it has what was trained.
    """
    expect("train's program", program, Program, "jaxpar.compile_step(step, hardware=...) makes one")
    expect("train's training", training, Training, "jaxpar.Training(steps=...) makes one")
    if state is not None:
        program.takes.check_state(state)
    refuse_settings()
    check_data(program.step.layout.model, data)
    expect("train's watch", watch, Callable, "give a function of a step and its metrics")
    if training.evaluate_every and data.walk is None:
        raise RequestError(
            f"evaluate_every={training.evaluate_every}, and data '{data.name}' has no test split: "
            "give it one, or leave evaluate_every out"
        )
    write = _writer(metrics_file)
    start = program.init(training.seed) if state is None else state

    def tell(step: int, metrics: dict[str, float]) -> None:
        watch(step, metrics)
        write({"step": step, **metrics})

    run = _Run(program, data, training, start, tell)
    try:
        told = memory_told(program.step.layout.model.name, program.hardware)
        with told, jax.transfer_guard("disallow"):
            run.steps()
            run.last_test()
        run.notes = training_notes(program)
        if run.test:
            run.notes += evaluation_notes(program, data)
    except Exception as error:  # of a person's data or `watch`, or of the disk
        if run.done == run.begun:
            raise
        run.settle()
        kind = "" if isinstance(error, RequestError) else f"{type(error).__name__}: "
        raise TrainingStopped(
            f"training stopped after step {run.done} of {training.steps} "
            f"({kind}{words_of(error)}); in Python, this error's `outcome` has "
            "what was trained",
            run.outcome(),
        ) from error
    return run.outcome()


class _Run:
    """The place reached in training: the one thing here that changes."""

    def __init__(self, program, data, training, state, tell):
        self.program, self.data, self.training, self.state = program, data, training, state
        self.tell = tell
        self.begun = self.done = int(jax.device_get(state.step))
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.test: dict[str, float] = {}
        self.notes: tuple[str, ...] = ()
        self.waiting: tuple[int, Any] | None = None
        self.started = time.perf_counter()
        self.stepped_seconds = 0.0

    def steps(self) -> None:
        """All steps, and the tests between them."""
        model, every = self.program.step.layout.model, self.training.evaluate_every
        for step in range(self.begun, self.training.steps):
            rows = read_batch(
                self.data, step, model, seed=self.training.seed, rows=self.program.local_rows
            )
            self.state, metrics = self.program.update(self.state, self.program.place(rows))
            self.done = step + 1
            if _synchronises(self.program, self.done, self.training.steps):
                self.state = self.program.average(self.state)
            waiting, self.waiting = self.waiting, (self.done, metrics)
            if waiting:
                self._tell(waiting)
            if every and self.done % every == 0 and self.done < self.training.steps:
                self.tell(self.done, _as_test(evaluate(self.program, self.state, self.data)))
        if self.waiting:
            self._tell(self.waiting)
        self.stepped_seconds = time.perf_counter() - self.started

    def last_test(self) -> None:
        """The test split after the last step, where there is one."""
        if self.data.walk is not None:
            self.test = evaluate(self.program, self.state, self.data)
            self.tell(self.training.steps, _as_test(self.test))

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
            notes=self.notes,
        )

    def _tell(self, waiting: tuple[int, Any]) -> None:
        """Tell the metrics of a step that has run."""
        self.last = _told(waiting)
        self.first = self.first or self.last
        self.tell(waiting[0], self.last)


def set_fields(record: Any, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Replace the fields of a record that `changes` names; returns it and what was left over."""
    own = {f.name for f in fields(record)}
    taken = {name: value for name, value in changes.items() if name in own}
    rest = {name: value for name, value in changes.items() if name not in own}
    return type(record)(**{**asdict(record), **taken}), rest


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


def _writer(path: str | Path | None) -> Callable[[dict], None]:
    """A function that appends a row as a JSON line to a file; nothing without a path."""
    if path is None or jax.process_index() != 0:
        return lambda row: None
    expect("train's metrics_file", path, str | Path, "name a file")
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a", encoding="utf-8").close()  # refused now rather than after the first step
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise RequestError(
            f"metrics file {file}: cannot write there ({words_of(error)}); name another"
        ) from error

    def write(row: dict) -> None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    return write
