"""Train: batches in, steps, metrics out, the test split last; the device never waits for Python.

Metrics are read one step late, so that the next step is already queued when the last one's loss is
fetched. Batches depend on (seed, step) alone. Nothing is copied between host and devices by
accident: the loop runs under JAX's transfer guard.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.data.record import Dataset
from jaxpar.layout.record import Layout
from jaxpar.models.pieces import pieces_of
from jaxpar.models.record import Model
from jaxpar.optimizers.record import Optimizer, Recipe, check_counts, make_optimizer
from jaxpar.program.record import Program
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
        check_counts(self, microbatches=1, evaluate_every=0, seed=0)
        check_scale(self.loss_scale)


@dataclass(frozen=True)
class Outcome:
    """What training came to; `seconds` is from the first step to the last evaluation."""

    steps: int
    seconds: float
    steps_per_second: float
    units_per_second: float
    unit: str
    first: dict[str, float]
    last: dict[str, float]
    test: dict[str, float]
    state: State

    def record(self) -> dict:
        """The outcome as one JSON-ready dict, without the arrays."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            f"{self.unit}_per_second": self.units_per_second,
            **{f"first_{name}": value for name, value in self.first.items()},
            **{f"last_{name}": value for name, value in self.last.items()},
            **{f"test_{name}": value for name, value in self.test.items()},
        }


def optimizer_of(training: Training, layout: Layout, **options: Any) -> Optimizer:
    """The optimizer that `training` asks for, for the parameters of a layout.

    `options` are the rule's own, such as AdamW's `b2`. With a loss scale an update that is not
    finite is skipped.
    """
    own = OwnTree.of(layout)
    dims = {path: layout.parameters[pieces_of(path, own.cuts)[0]].dims for path in own.keys}
    return make_optimizer(training, own.nested(dims), skips=bool(training.loss_scale), **options)


def check_data(model: Model, data: Dataset) -> None:
    """Refuse data that the model cannot read: missing fields, other shapes, ids past its tables."""
    for name, field in model.batch.items():
        if name not in data.fields:
            usual = f"; it is usually trained on '{model.data}'" if model.data else ""
            raise RequestError(
                f"model '{model.name}' reads '{name}', and data '{data.name}' holds "
                f"{', '.join(data.fields)}{usual}"
            )
        shape, _ = data.fields[name]
        if tuple(shape) != field.shape[1:]:
            raise RequestError(
                f"data '{data.name}' gives '{name}' of shape {tuple(shape)} an example, and model "
                f"'{model.name}' reads {field.shape[1:]}: set the model's sizes to match"
            )
        if field.below is not None and data.vocabulary > field.below:
            raise RequestError(
                f"data '{data.name}' holds {data.vocabulary} different ids, and '{name}' of model "
                f"'{model.name}' goes up to {field.below - 1}: use ids below {field.below}, or "
                f"give the model {data.vocabulary}"
            )


def train(
    program: Program,
    data: Dataset,
    training: Training,
    *,
    state: State | None = None,
    watch: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    metrics_file: Path | None = None,
) -> Outcome:
    """Train for `training.steps` steps, from `state` or from fresh parameters.

    Args:
        program: compiled for devices that are here.
        data: what to train and test on.
        training: steps, seed and how often to look at the test split.
        state: where to go on from; its `step` picks the batches, so nothing is replayed. Used up.
        watch: called with (step, metrics) a step after it ran; tests come as `test_...` entries.
        metrics_file: a JSON line is appended for every call of `watch`.
    """
    check_data(program.step.layout.model, data)
    size = program.step.layout.model.batch_size
    now: State = program.init(training.seed) if state is None else state
    done = int(jax.device_get(now.step))
    write = _writer(metrics_file)

    def tell(step: int, metrics: dict[str, float]) -> None:
        watch(step, metrics)
        write({"step": step, **metrics})

    first: dict[str, float] = {}
    last: dict[str, float] = {}
    waiting: tuple[int, Any] | None = None
    started = time.perf_counter()
    with jax.transfer_guard("disallow"):
        for step in range(done, training.steps):
            rows = data.batch(step, size=size, seed=training.seed, rows=program.local_rows)
            now, metrics = program.update(now, program.place(rows))
            if _synchronises(program, step + 1, training.steps):
                now = program.average(now)
            if waiting:
                last = _told(waiting)
                first = first or last
                tell(waiting[0], last)
            waiting = (step + 1, metrics)
            every = training.evaluate_every
            if every and (step + 1) % every == 0 and step + 1 < training.steps:
                tell(step + 1, _as_test(evaluate(program, now, data)))
        if waiting:
            last = _told(waiting)
            first = first or last
            tell(waiting[0], last)
        stepped = time.perf_counter() - started
        test = evaluate(program, now, data)
    tell(training.steps, _as_test(test))
    rate = (training.steps - done) / stepped
    return Outcome(
        steps=training.steps - done,
        seconds=time.perf_counter() - started,
        steps_per_second=rate,
        units_per_second=rate * size * _units_in_a_row(data),
        unit=data.unit,
        first=first,
        last=last,
        test=test,
        state=now,
    )


def evaluate(program: Program, state: State, data: Dataset) -> dict[str, float]:
    """Means over the whole test split, each example counted once.

    A loss that takes no weights cannot leave padding out: of its batches whole ones count.
    """
    model, here = program.step.layout.model, program.local_rows
    weighs = "weight" in model.batch
    totals: dict[str, list[float]] = {}
    for rows in data.evaluation(size=model.batch_size, rows=here if weighs else slice(None)):
        if not weighs:
            if totals and not rows["weight"].all():
                continue  # as every process sees
            rows = {name: value[here] for name, value in rows.items()}
        means = jax.device_get(program.evaluate(state, program.place(rows)))
        for name, mean in means.items():
            sums = totals.setdefault(name, [0.0, 0.0])
            sums[0] += float(mean.total)
            sums[1] += float(mean.weight)
    means = {name: total / weight for name, (total, weight) in totals.items()}
    # A loss with other terms reports the next token's by that name.
    return means | bits(means.get("next_token", means["loss"]), data)


def bits(loss: float, data: Dataset) -> dict[str, float]:
    """A token loss in nats as bits: per byte where a token is a byte, else per token."""
    if data.unit != "tokens":
        return {}
    return {"bits_per_byte" if data.vocabulary == 256 else "bits_per_token": loss / math.log(2)}


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


def _units_in_a_row(data: Dataset) -> int:
    """How many tokens or examples one row of `data` has."""
    shape, _ = data.fields["weight"]
    return math.prod(shape)


def _told(waiting: tuple[int, Any]) -> dict[str, float]:
    """The metrics of a step; of replicas of local SGD the mean over those of this process."""
    here = jax.device_get({name: _held_here(metric) for name, metric in waiting[1].items()})
    return {name: float(np.mean(value)) for name, value in here.items()}


def _held_here(metric: jax.Array) -> Any:
    """A metric, or the shards of it on this process, where each replica has its own."""
    if metric.is_fully_replicated or metric.is_fully_addressable:
        return metric
    return [shard.data for shard in metric.addressable_shards]


def _as_test(means: dict[str, float]) -> dict[str, float]:
    """The same figures, named `test_...`."""
    return {f"test_{name}": value for name, value in means.items()}


def _writer(path: Path | None) -> Callable[[dict], None]:
    """A function that appends a row as a JSON line to a file; nothing without a path."""
    if path is None or jax.process_index() != 0:
        return lambda row: None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # refused now rather than after the first step

    def write(row: dict) -> None:
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    return write
