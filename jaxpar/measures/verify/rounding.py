"""The rounding that one device has by itself: its step again, its rows in another order.

Inputs are changed in their last digit, too.

A loss that cancels to zero, or batch statistics of few rows that are divided by, multiply rounding
by orders. What a layout is then off by says nothing, unless it is more than one device is off from
itself. Nothing is compiled for it: the same program is run on other numbers. What an optimizer
rounds to float32, such as a schedule, comes out one digit otherwise where it is compiled otherwise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpar.measures.verify.compare import errors_of, relative
from jaxpar.measures.verify.precision import update_rounding
from jaxpar.measures.verify.simulation import every_of
from jaxpar.measures.verify.states import arrays_as_stored, to_host
from jaxpar.measures.verify.trial import Side, Trial
from jaxpar.step.record import State

TIMES = 3
"""How often it is measured; the largest counts."""

_BEFORE_AN_UPDATE = ("gradient", "model state", "loss")
"""Checks of what no optimizer has touched."""

Own = dict[str, dict[str, float]]
"""Name of a check -> name of an array -> one device's own relative error."""


def own_rounding(
    trial: Trial, one: Side, start: State, batch: Mapping[str, np.ndarray], steps: int
) -> Own:
    """One device's own rounding, for every check of a trial and every array in it.

    Args:
        trial: whose layout says how arrays are stored and named.
        one: one device's side after its first step.
        start: the state before it, in host memory.
        batch: of that step, in host memory.
        steps: how many are judged.
    """
    found: Own = {}
    usual = _walked(trial, one, steps)
    for seed in range(TIMES):
        rng = np.random.default_rng(seed)
        moved = replace(start, parameters=_moved(start.parameters, rng))
        rows = _moved(batch, rng)
        if one.runs.may_reorder:
            order = rng.permutation(len(next(iter(rows.values()))))
            rows = {name: value[order] for name, value in rows.items()}
        other = Side.of(one.runs, one.runs.placed(moved), one.runs.place(rows))
        gradients = _moved(to_host(dict(one.gradients)), rng)
        errors = {
            **_differences(usual, _walked(trial, other, steps)),
            "update": _update_error(trial, one, start, gradients),
        }
        for check, by_name in errors.items():
            held = found.setdefault(check, {})
            for name, error in by_name.items():
                held[name] = max(error, held.get(name, 0.0))
    least = update_rounding(trial.candidate.step)
    return {
        check: by_name
        if check in _BEFORE_AN_UPDATE
        else {name: max(error, least) for name, error in by_name.items()}
        for check, by_name in found.items()
    }


def _walked(trial: Trial, side: Side, steps: int) -> dict[str, Any]:
    """What a side comes to by check: losses as lists, arrays by name."""
    layout, losses, state = trial.candidate.step.layout, [side.metrics["loss"]], side.state
    seen = {
        "gradient": arrays_as_stored(layout, to_host(dict(side.gradients))),
        "model state": arrays_as_stored(layout, to_host(dict(side.state.model_state))),
        "loss": losses[:1],
    }
    averaging = layout.strategy.averaging
    for done in range(1, steps + 1):
        if done > 1:
            side = side.after_another(state)
            losses.append(side.metrics["loss"])
        state = side.state
        if averaging and done % every_of(averaging) == 0:
            state = side.runs.average(state)
    after = trial.stored(to_host(state))
    return {**seen, f"loss over {steps} steps": losses, f"state after {steps} steps": after}


def _differences(usual: dict[str, Any], other: dict[str, Any]) -> Own:
    """The relative errors of the one walk against the other, by check."""
    return {
        check: errors_of(value, other[check])
        if isinstance(value, dict)
        else {"loss": max(map(relative, other[check], value))}
        for check, value in usual.items()
    }


def _update_error(trial: Trial, one: Side, start: State, gradients: Mapping[str, Any]):
    """How far an update from gradients changed in their last digit is from that of the side's."""
    right, kept, loss = one.runs, one.state.model_state, one.metrics["loss"]
    after, other = (
        to_host(right.apply(right.placed(start), given, kept, loss))
        for given in (dict(one.gradients), gradients)
    )
    moved = {p: after.parameters[p] - start.parameters[p] for p in start.parameters}
    sizes = replace(after, parameters=moved)
    return errors_of(*map(trial.stored, (after, other, sizes)))


def _moved(arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """Arrays, every float of them one unit in the last place up or down; others as they are."""
    return {
        path: (x * (1 + jnp.finfo(x.dtype).eps * rng.choice((-1.0, 1.0), x.shape))).astype(x.dtype)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        else x
        for path, x in ((path, np.asarray(x)) for path, x in arrays.items())
    }
