"""Whether a loss of a batch is put together from losses of its parts: tried, on half a batch twice.

In-batch negatives, batch statistics, ranks and sums are another loss in parts, whatever their trace
looks like. So two halves of a batch, each with the weight that the model's means have, are compared
with the whole: the loss and its whole gradient, in float64, with random draws held still. Halves
that are alike in a mask or a count would hide what they weigh, so it is also halved by each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.core.progress import here
from jaxpar.hardware.record import Hardware
from jaxpar.inference.probe import nudged, probe_batch, widened
from jaxpar.inference.record import TracedLoss
from jaxpar.inference.traced import module_of, traced_loss
from jaxpar.jaxprs.interpreter import Interpreter
from jaxpar.models.modules import build, take_apart, values_of
from jaxpar.models.record import Model
from jaxpar.step.record import Step

MOST_ROWS, MOST_ELEMENTS = 16, 1 << 24
"""What is tried at most: rows of a batch, and elements of all parameters together."""

MOST_FIELDS = 8
"""Fields of a batch by which it is halved."""

TOLERANCE = 1e-6
"""Relative difference that float64 never makes of one loss, and another loss nearly always does."""


@dataclass(frozen=True)
class InParts:
    """What a loss and its metrics are in parts of a batch.

    Attributes:
        reason: why the loss is another one then; "" if it is not.
        metrics: names of those whose mean over parts is not that of the whole.
    """

    reason: str = ""
    metrics: tuple[str, ...] = ()


def in_parts(model: Model, hardware: Hardware) -> InParts:
    """What a plain model's loss and metrics are in parts; nothing of one not written plainly.

    A model too large to be tried is taken at its word.

    Args:
        model: any; one that was written for jaxpar says its weights itself.
        hardware: that something can be run on.
    """
    if not model.units or sum(a.size for a in _shapes(model).values()) > MOST_ELEMENTS:
        return InParts()
    key = ("in parts", hardware.name)
    if key not in model.traced:
        with jax.enable_x64(True), here.long_work("trying the loss in parts"):
            model.traced[key] = _tried(widened(model))
    return model.traced[key]


def check_parts(step: Step, hardware: Hardware) -> None:
    """Refuse to take a loss in parts that is another loss then.

    Replicas of local SGD have each the loss of its own rows, and statistics of its own.

    Args:
        step: that takes it in microbatches, in replicas, or whole.
        hardware: that it is tried on.

    Raises:
        RequestError: with the reason and the repair.
    """
    model, strategy = step.layout.model, step.layout.strategy
    if step.microbatches > 1:
        what, instead = f"{step.microbatches} microbatches", "one microbatch"
    elif strategy.averaging and not _keeps_statistics(model):
        what, instead = f"a replica's own rows under strategy '{strategy.name}'", "strategy 'data'"
    else:
        return
    if reason := in_parts(model, hardware).reason:
        raise RequestError(
            f"model '{model.name}': {reason}, so that with {what} it would be another loss: use "
            f"{instead}, or return a mean over rows, divided last by a sum over the batch such as "
            "that of its mask"
        )


def _keeps_statistics(model: Model) -> bool:
    """Whether a loss changes floats of the model's state, as batch normalization does."""
    traced = traced_loss(model)
    before = dict(zip(traced.arguments, traced.closed.jaxpr.invars, strict=True))
    left = traced.closed.jaxpr.outvars[traced.tree.num_leaves :]
    return any(
        after is not before[path] and jnp.issubdtype(after.aval.dtype, jnp.floating)
        for path, after in zip(traced.state, left, strict=True)
    )


def _tried(model: Model) -> InParts:
    """What is found of a model in float64."""
    half = max(1, min(model.batch_size, MOST_ROWS) // 2)
    batch = probe_batch(model.with_batch_size(2 * half), seed=0)
    try:
        whole, part = (_gradient(model.with_batch_size(rows)) for rows in (2 * half, half))
    except RequestError as error:
        return InParts(f"its loss takes no other number of rows ({error})")
    parts = take_apart(build(model, 0), model.trainable)
    parameters = {p: np.asarray(v) for p, v in values_of(parts.parameters).items()}
    held = nudged(parameters, seed=0), values_of(parts.state)
    right = whole(*held, batch)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(right)):
        return InParts()  # verify says so, with its own sentence
    reason, others = "", dict[str, None]()
    for halves in _halves(batch, half):
        means = [part(*held, {n: x[rows] for n, x in batch.items()}) for rows in halves]
        reason, metrics = _difference(jax.tree.map(jnp.add, *means), right)
        others |= dict.fromkeys(metrics)
        if reason:
            break
    return InParts(reason, tuple(others))


def _halves(batch: Mapping[str, np.ndarray], half: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of a batch in two halves: every other one, and the smaller and the larger of a field."""
    orders = [np.r_[0 : 2 * half : 2, 1 : 2 * half : 2]]
    for field in list(batch.values())[:MOST_FIELDS]:
        rows = np.asarray(field, "float64").reshape(2 * half, -1).sum(axis=1)
        orders.append(np.argsort(rows, kind="stable"))
    found = {frozenset(order[:half].tolist()): (order[:half], order[half:]) for order in orders}
    return list(found.values())


def _difference(got: tuple, right: tuple) -> tuple[str, tuple[str, ...]]:
    """Why the sum of halves is another loss than the whole, or "", and which metrics are others."""
    (mean, metrics, gradient), (of_whole, right_metrics, right_gradient) = got, right
    others = tuple(n for n, m in metrics.items() if _differ([m.value], [right_metrics[n].value]))
    if _differ([mean.value], [of_whole.value]):
        return (
            f"its loss of a batch is {of_whole.value:.6g} and of its halves {mean.value:.6g}",
            others,
        )
    both = [g / mean.divisor for g in jax.tree.leaves(gradient)]
    if _differ(both, [g / of_whole.divisor for g in jax.tree.leaves(right_gradient)]):
        return "the gradient of a batch is not that of its halves together", others
    return "", others


def _gradient(model: Model) -> Any:
    """(parameters, state, batch) -> (the loss, the metrics, the gradient of the loss's total)."""
    traced = traced_loss(model)

    def function(parameters, state, batch):
        def total(parameters):
            loss, metrics = _still(traced, parameters, state, batch)
            return loss.total, (loss, metrics)

        gradient, means = jax.grad(total, has_aux=True)(parameters)
        return *means, gradient

    return jax.jit(function)


def _still(traced: TracedLoss, parameters: Mapping, state: Mapping, batch: Mapping) -> Any:
    """The loss and the metrics with no random draw in them: all bits are zero."""
    args = traced.flat(parameters, state, batch, jax.random.key(0))
    return traced.unflat(_Still().run(traced.closed.jaxpr, traced.closed.consts, args))[:2]


class _Still(Interpreter):
    """Evaluates with random bits that are all zero: the same for every row of every part."""

    def leaf(self, eqn, operands, here):
        """An operation's results."""
        if eqn.primitive.name == "random_bits":
            return [jnp.zeros(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
        return super().leaf(eqn, operands, here)


def _differ(got: list[Any], right: list[Any]) -> bool:
    """Whether two lists of arrays are apart by more than rounding, all together."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(got, right, strict=True)]
    gap = sum(float(np.sum(np.abs(a - b) ** 2)) for a, b in pairs)
    size = sum(float(np.sum(np.abs(b) ** 2)) for _, b in pairs)
    return bool(np.sqrt(gap) > TOLERANCE * np.sqrt(size) + 1e-12)


def _shapes(model: Model) -> Mapping[str, Any]:
    """Abstract parameters by path."""
    return values_of(module_of(model).parameters)
