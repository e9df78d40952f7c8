"""Whether a loss of a batch is put together from losses of its parts: tried, on half a batch twice.

In-batch negatives, batch statistics, ranks and sums are another loss in parts, whatever their trace
looks like. So two halves of a batch, each with the weight that the model's means have, are compared
with the whole: the loss and its whole gradient, in float64, with random draws held still.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.hardware.record import Hardware
from jaxpar.inference.probe import nudged, probe_batch, widened
from jaxpar.inference.record import TracedLoss
from jaxpar.inference.traced import module_of, traced_loss
from jaxpar.jaxprs.interpreter import Interpreter
from jaxpar.models.modules import build, take_apart, values_of
from jaxpar.models.record import Model

MOST_ROWS, MOST_ELEMENTS = 16, 1 << 24
"""What is tried at most: rows of a batch, and elements of all parameters together."""

TOLERANCE = 1e-6
"""Relative difference that float64 never makes of one loss, and another loss nearly always does."""


def reason_against_parts(model: Model, hardware: Hardware) -> str:
    """Why a plain model's loss cannot be had in parts; "" if it can, or was not written plainly.

    A model too large to be tried is taken at its word.

    Args:
        model: any; one that was written for jaxpar says its weights itself.
        hardware: that something can be run on.
    """
    if not model.units or sum(a.size for a in _shapes(model).values()) > MOST_ELEMENTS:
        return ""
    key = ("in parts", hardware.name)
    if key not in model.traced:
        with jax.enable_x64(True):
            model.traced[key] = _tried(widened(model))
    return model.traced[key]


def check_parts(model: Model, what: str, hardware: Hardware) -> None:
    """Refuse to take a loss in parts that is another loss then.

    Args:
        model: whose loss it is.
        what: what takes it in parts, for people.
        hardware: that it is tried on.

    Raises:
        RequestError: with the reason and the repair.
    """
    if reason := reason_against_parts(model, hardware):
        raise RequestError(
            f"model '{model.name}': {reason}, so that with {what} it would be another loss: use "
            "one microbatch, or return a mean over rows, divided last by a sum over the batch such "
            "as that of its mask"
        )


def _tried(model: Model) -> str:
    """The reason, of a model in float64."""
    half = max(1, min(model.batch_size, MOST_ROWS) // 2)
    batch = probe_batch(model.with_batch_size(2 * half), seed=0)
    try:
        whole, part = (_gradient(model.with_batch_size(rows)) for rows in (2 * half, half))
    except RequestError as error:
        return f"its loss takes no other number of rows ({error})"
    parts = take_apart(build(model, 0), model.trainable)
    parameters = {p: np.asarray(v) for p, v in values_of(parts.parameters).items()}
    held = nudged(parameters, seed=0), values_of(parts.state)
    means = [part(*held, {n: x[k::2] for n, x in batch.items()}) for k in (0, 1)]
    right = whole(*held, batch)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(right)):
        return ""  # verify says so, with its own sentence
    weight = sum(w for _, w, _ in means)
    loss = sum(total for total, _, _ in means) / weight
    if _differ([loss], [right[0] / right[1]]):
        return f"its loss of a batch is {right[0] / right[1]:.6g} and of its halves {loss:.6g}"
    both = jax.tree.map(lambda a, b: (a + b) / weight, means[0][2], means[1][2])
    of_whole = jax.tree.map(lambda g: g / right[1], right[2])
    if _differ(jax.tree.leaves(both), jax.tree.leaves(of_whole)):
        return "the gradient of a batch is not that of its halves together"
    return ""


def _gradient(model: Model) -> Any:
    """(parameters, state, batch) -> (total, weight, gradient of the total) of a model's rows."""
    traced = traced_loss(model)

    def function(parameters, state, batch):
        def total(parameters):
            loss = _still(traced, parameters, state, batch)
            return loss.total, loss.weight

        (value, weight), gradient = jax.value_and_grad(total, has_aux=True)(parameters)
        return value, weight, gradient

    return jax.jit(function)


def _still(traced: TracedLoss, parameters: Mapping, state: Mapping, batch: Mapping) -> Any:
    """The loss with no random draw in it: all bits are zero."""
    args = traced.flat(parameters, state, batch, jax.random.key(0))
    return traced.unflat(_Still().run(traced.closed.jaxpr, traced.closed.consts, args))[0]


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
