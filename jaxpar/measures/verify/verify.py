"""Verify: does a layout compute what one device computes, array by array, replica by replica.

Judged by what separates right from wrong. A loss curve does not: under Adam a gradient eight times
too large moves it by 1e-5, less than honest rounding does. So one gradient is compared per array,
then one optimizer update from the same gradient, then a few whole steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.hardware.record import Hardware
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.measures.verify.alone import on_one_device
from jaxpar.measures.verify.compare import Check, compare, relative, rounding_only
from jaxpar.measures.verify.diagnosis import later_mistake, likely_mistake
from jaxpar.measures.verify.probe import WIDE, narrowest, nudged, probe_batch, widened
from jaxpar.measures.verify.simulation import SYNCHRONISATIONS, every_of, mistake_in, simulation
from jaxpar.measures.verify.states import (
    arrays_of,
    arrays_to_host,
    as_stored,
    named_state,
    on_devices,
    to_host,
)
from jaxpar.measures.verify.verdict import BOUNDS, ROUNDING, Verdict
from jaxpar.program.record import Program, compile_step
from jaxpar.step.make_step import make_step
from jaxpar.step.record import State, Step

LEAST_BATCH = 4
"""Rows that a layout with few parts is tried on."""

SMALL_BATCH = 32
"""Rows up to which a batch is tried as it is."""


def verify(
    layout: Layout,
    *,
    hardware: Hardware,
    make: Callable[[Layout], Step] = make_step,
    steps: int = 3,
    seed: int = 0,
) -> Verdict:
    """Compare a layout's training step with the same step on one device.

    A strategy that averages parameters is another algorithm than one step for the whole batch, and
    is compared with that algorithm run on one device, see `_simulation`.

    Args:
        layout: what is on trial.
        hardware: devices that can run it (simulated ones do).
        make: makes the step from a layout, so that mode, optimizer and microbatches are the user's.
        steps: whole steps after the single gradient and update; where parameters are averaged at
            least as many as go past the second averaging.
        seed: of the parameters, the probe batch and dropout.

    Raises:
        RequestError: for described hardware, which cannot run.
    """
    if hardware.kind == "described":
        raise RequestError(
            f"hardware '{hardware.name}' is described, not present, so nothing can be run on it to "
            "verify: use --hardware cpu"
        )
    if averaging := layout.strategy.averaging:
        steps = max(steps, SYNCHRONISATIONS * every_of(averaging) + 1)
    with jax.enable_x64(True):
        wide = _relaid(layout, widened(layout.model), make(layout).microbatches)
        if narrowest(wide) == WIDE:
            return _verify(wide, hardware, make, steps, seed, WIDE)
    narrow = _relaid(layout, layout.model, make(layout).microbatches)
    return _verify(narrow, hardware, make, steps, seed, narrowest(narrow))


def _check_finite(layout: Layout, metrics: Mapping[str, Any], gradients: Mapping[str, Any]) -> None:
    """Refuse to compare what is no number: any two of those are equal, or none."""
    broken = [name for name, value in metrics.items() if not np.isfinite(value).all()]
    broken += [f"the gradient of {p}" for p, g in gradients.items() if not np.isfinite(g).all()]
    if broken:
        raise RequestError(
            f"model '{layout.model.name}': {', '.join(broken[:3])} is not finite on one device, "
            "before any update: nothing can be verified of it; look for a logarithm, a root or a "
            "division at the values that the model starts with"
        )


def _relaid(layout: Layout, model, microbatches: int) -> Layout:
    """The layout of `model`, its batch made no larger than gives every part two rows.

    As many rows for most layouts, so that one device's side of them is the same. A model that
    nobody annotated may know its batch size, so a small batch of its stays.
    """
    parts = layout.row_shares * microbatches
    if model.units and model.batch_size <= SMALL_BATCH and model.batch_size % parts == 0:
        return lay_out(model, strategy=layout.strategy, mesh=layout.mesh)
    shares = max(2, LEAST_BATCH // parts)
    model = model.with_batch_size(parts * max(1, min(shares, model.batch_size // parts)))
    return lay_out(model, strategy=layout.strategy, mesh=layout.mesh)


def _verify(layout, hardware, make, steps, seed, dtype) -> Verdict:
    """The verdict on a layout, judged by the bounds of `dtype`; arguments as for `verify`."""
    bounds = BOUNDS[dtype]
    step = make(layout)
    candidate = compile_step(step, hardware=hardware, for_speed=False)
    averaging = layout.strategy.averaging
    if averaging:
        reference: Any = simulation(layout, step, hardware)
    else:
        reference = on_one_device(
            layout.model,
            optimizer=step.optimizer,
            microbatches=step.microbatches,
            hardware=hardware,
        )
    batch = probe_batch(layout.model, seed)
    start = to_host(reference.init(seed))
    stored = partial(as_stored, layout)
    # A plain module is made as it was written, in float32, and its init may compute.
    drawn = BOUNDS["float32"]["init"] if layout.model.units else bounds["init"]
    checks = [
        compare("initial state", stored(arrays_of(start)), arrays_of(candidate.init(seed)), drawn)
    ]
    start = replace(start, parameters=nudged(start.parameters, seed))

    sides = _Side.of(reference, start, batch), _Side.of(candidate, start, batch)
    (right, right_state, right_metrics), (got, got_state, got_metrics) = (
        (side.gradients, side.state.model_state, side.metrics) for side in sides
    )
    _check_finite(layout, right_metrics, right)
    right = arrays_to_host(right)
    gradient = compare("gradient", stored(right), got, bounds["gradient"])
    checks.append(gradient)
    loss_error = relative(got_metrics["loss"], right_metrics["loss"])
    checks.append(Check("loss", 1, "loss", loss_error, bounds["loss"]))
    if right_state:
        named = (named_state(right_state), named_state(got_state))
        checks.append(compare("model state", *named, bounds["gradient"]))
    states = (right_state, got_state)
    checks.append(_update_check(reference, candidate, start, right, states, bounds["update"]))
    unjudged = rounding_only(right, ROUNDING * bounds["gradient"])
    checks += _steps_checks(*sides, steps, bounds, unjudged)

    mistake = None
    if averaging:
        failed = [check.name for check in checks if not check.ok]
        mistake = mistake_in(failed[0]) if failed else None
    elif not gradient.ok:
        mistake = likely_mistake(
            arrays_to_host(got),
            stored(right),
            mesh=layout.mesh,
            microbatches=step.microbatches,
            gradient_of_rows=lambda rows: stored(
                _part_gradient(layout, step, hardware, start, batch, rows)
            ),
            rows=layout.model.batch_size,
            replicas_agree=gradient.replicas_agree,
            loss_agrees=loss_error <= bounds["loss"],
            tolerance=bounds["gradient"],
        )
    elif not all(c.ok for c in checks):
        mistake = later_mistake(next(c for c in checks if not c.ok))
    verdict = Verdict(
        dtype, tuple(checks), steps, layout.model.batch_size, mistake, program=candidate
    )
    return replace(verdict, algorithm=reference.algorithm) if averaging else verdict


def _update_check(reference, candidate, start, gradients, model_states, bound) -> Check:
    """One update from the same gradients, its error relative to the size of the update itself."""
    before = start.parameters
    right = to_host(reference.apply(on_devices(reference, start), gradients, model_states[0]))
    state = on_devices(candidate, start)
    stored = partial(as_stored, candidate.step.layout)
    shared = jax.device_put(stored(gradients), candidate.gradient_shardings)
    got = candidate.apply(state, shared, model_states[1])
    moved = {p: right.parameters[p] - before[p] for p in before}
    return compare(
        "update",
        stored(arrays_of(right)),
        arrays_of(got),
        bound,
        norms=stored(arrays_of(replace(right, parameters=moved))),
    )


@dataclass(frozen=True)
class _Side:
    """One side of a comparison after some steps: the program, its placed batch, and what it made.

    Attributes:
        program: a Program or a Simulation.
        batch: on its devices.
        state, metrics, gradients: of the last step.
    """

    program: Any
    batch: Any
    state: State
    metrics: Mapping[str, Any]
    gradients: Mapping[str, Any]

    @classmethod
    def of(cls, program: Any, start: State, batch: Mapping[str, np.ndarray]) -> "_Side":
        """The side after its first step from `start`."""
        placed = program.place(batch)
        return cls(program, placed, *program.probe(on_devices(program, start), placed))

    def after_another(self, state: State) -> "_Side":
        """The side after one more step, from `state`."""
        return _Side(self.program, self.batch, *self.program.probe(state, self.batch))


def _steps_checks(reference: _Side, candidate: _Side, steps, bounds, unjudged) -> list[Check]:
    """Losses over some steps, and the state after them; both sides have done the first."""
    averaging = candidate.program.step.layout.strategy.averaging
    sides, worst = (reference, candidate), 0.0
    states = tuple(side.state for side in sides)
    for done in range(1, steps + 1):
        if done > 1:
            sides = tuple(s.after_another(x) for s, x in zip(sides, states, strict=True))
        error = relative(sides[1].metrics["loss"], sides[0].metrics["loss"])
        worst = error if np.isnan(error) else max(worst, error)
        states = tuple(side.state for side in sides)
        if averaging and done % every_of(averaging) == 0:
            states = tuple(s.program.average(x) for s, x in zip(sides, states, strict=True))
    right, got = states
    stored = as_stored(candidate.program.step.layout, arrays_of(to_host(right)))
    judged = {
        name: value
        for name, value in stored.items()
        if not any(f"/{name}".endswith(f"/{path}") for path in unjudged)
    }
    return [
        Check(f"loss over {steps} steps", steps, "loss", worst, bounds["loss"]),
        compare(f"state after {steps} steps", judged, arrays_of(got), bounds["steps"]),
    ]


def _part_gradient(layout, step, hardware, start, batch, rows) -> dict[str, np.ndarray]:
    """The gradient of these rows alone, on one device, by path."""
    part = {name: value[rows] for name, value in batch.items()}
    model = layout.model.with_batch_size(len(next(iter(part.values()))))
    program = on_one_device(model, optimizer=step.optimizer, microbatches=1, hardware=hardware)
    return arrays_to_host(_gradients(program, start, part)[0])


def _gradients(program: Program, start: State, batch):
    """(gradients, model state, metrics) of a program from a host state and a host batch."""
    gradients, state, metrics = program.gradients(on_devices(program, start), program.place(batch))
    return gradients, state, metrics
