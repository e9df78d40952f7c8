"""Verify: does a layout compute what one device computes, array by array, replica by replica.

Judged by what separates right from wrong. A loss curve does not: under Adam a gradient eight times
too large moves it by 1e-5, less than honest rounding does. So one gradient is compared per array,
then one optimizer update from the same gradient, then a few whole steps.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError, expect
from jaxpar.core.kinds import MOST, whole
from jaxpar.hardware.record import Hardware
from jaxpar.inference.probe import WIDE, nudged, probe_batch, widened
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.measures.verify.compare import Check, rounding_only
from jaxpar.measures.verify.diagnosis import later_mistake, likely_mistake
from jaxpar.measures.verify.precision import narrowest
from jaxpar.measures.verify.pure import check_pure
from jaxpar.measures.verify.reference import Reference, as_written, reference
from jaxpar.measures.verify.rounding import own_rounding
from jaxpar.measures.verify.simulation import SYNCHRONISATIONS, every_of, mistake_in, simulation
from jaxpar.measures.verify.states import arrays_as_stored, arrays_as_written, on_devices, to_host
from jaxpar.measures.verify.trial import Side, Trial
from jaxpar.measures.verify.verdict import BOUNDS, ROUNDING, Verdict
from jaxpar.program.configuration import deliberate, refuse_settings
from jaxpar.program.out_of_memory import memory_told
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from jaxpar.step.record import Step

LEAST_BATCH = 4
"""Rows that a layout with few parts is tried on."""

SMALL_BATCH = 32
"""Rows up to which a batch is tried as it is."""

MOST_STEPS = 10_000
"""Whole steps that two programs are compared over: rounding grows, and each step waits for both."""


def verify(
    layout: Layout,
    *,
    hardware: Hardware | str,
    make: Callable[[Layout], Step] = make_step,
    steps: int = 3,
    seed: int = 0,
) -> Verdict:
    """Compare a layout's training step with the same step on one device.

    That is the model's own loss on the whole batch and the user's optimizer on Flax's tree, see
    `Reference`. A strategy that averages parameters is another algorithm, and is compared with that
    algorithm run on one device, see `Simulation`.

    Args:
        layout: what is on trial.
        hardware: devices that can run it (simulated ones do), or their name in the catalogue.
        make: makes the step from a layout, so that mode, optimizer and microbatches are the user's.
        steps: whole steps after the single gradient and update; where parameters are averaged at
            least as many as go past the second averaging.
        seed: of the parameters, the probe batch and dropout.

    Raises:
        RequestError: for described hardware, which cannot run; for a model whose loss is not the
            same function each time, or not finite.
    """
    expect("verify's layout", layout, Layout, "jaxpar.lay_out(model, ...) makes one")
    expect("verify's make", make, Callable, "give a function that makes a step of a layout")
    hardware, steps = Hardware.of(hardware), whole("steps", steps, least=1, most=MOST_STEPS)
    seed = whole("seed", seed, most=MOST)
    if hardware.kind == "described":
        raise RequestError(
            f"hardware '{hardware.name}' is described, not present, so nothing can be run on it to "
            "verify: use --hardware cpu"
        )
    if averaging := layout.strategy.averaging:
        steps = max(steps, SYNCHRONISATIONS * every_of(averaging) + 1)
    refuse_settings()
    with deliberate(), memory_told(layout.model.name, hardware):
        return _in_widest(layout, hardware, make, steps, seed)


def _in_widest(
    layout: Layout, hardware: Hardware, make: Callable, steps: int, seed: int
) -> Verdict:
    """The verdict in float64 where the model can be computed in it, else as it is."""
    check_pure(layout.model)
    microbatches = make(layout).microbatches
    with jax.enable_x64(True):
        wide = _relaid(layout, widened(layout.model), microbatches)
        if narrowest(as_written(wide.model)) == WIDE:
            return _verify(wide, hardware, make, steps, seed, WIDE)
    narrow = _relaid(layout, layout.model, microbatches)
    return _verify(narrow, hardware, make, steps, seed, narrowest(as_written(narrow.model)))


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
    candidate.check_runs()
    averaging = layout.strategy.averaging
    right: Any = simulation(layout, step, hardware) if averaging else _alone(layout, step, hardware)
    batch = probe_batch(layout.model, seed)
    start = to_host(right.init(seed))
    # A plain module is made as it was written, in float32, and its init may compute.
    drawn = BOUNDS["float32"]["init"] if layout.model.units else bounds["init"]
    trial = Trial(candidate, bounds)
    drawn_alike = trial.states("initial state", start, candidate.init(seed), drawn)
    start = replace(start, parameters=nudged(start.parameters, seed))

    one = Side.of(right, right.placed(start), right.place(batch))
    gradients = to_host(dict(one.gradients))
    _check_finite(layout, one.metrics, gradients)
    stored = arrays_as_stored(layout, gradients)
    unjudged = rounding_only(stored, ROUNDING * bounds["gradient"])

    def tried(trial: Trial) -> tuple[Side, list[Check]]:
        state = on_devices(candidate, start)
        many = Side.of(candidate, state, candidate.place(batch))
        checks = [drawn_alike, *trial.first_step(one, many, gradients)]
        checks.append(trial.update(start, one, many))
        return many, checks + trial.steps(one, many, steps, unjudged)

    many, checks = tried(trial)
    if not all(check.ok for check in checks[1:]):
        # An ill-conditioned model is judged by what its rounding is on one device.
        many, checks = tried(replace(trial, own=own_rounding(trial, one, start, batch, steps)))
    mistake = None
    if not all(check.ok for check in checks):
        mistake = _mistake(layout, step, hardware, start, batch, checks, gradients, many, bounds)
    return Verdict(
        dtype,
        tuple(checks),
        steps,
        layout.model.batch_size,
        mistake,
        algorithm=right.algorithm,
        program=candidate,
    )


def _alone(layout: Layout, step: Step, hardware: Hardware, rows: int | None = None) -> Reference:
    """One device's training of the model that a layout is of, on so many rows."""
    model = layout.model if rows is None else layout.model.with_batch_size(rows)
    parts = step.microbatches if rows is None else 1
    return reference(model, optimizer=step.optimizer, microbatches=parts, hardware=hardware)


def _mistake(layout, step, hardware, start, batch, checks, gradients, many, bounds) -> str:
    """What most likely went wrong where some checks failed."""
    failed = next(check for check in checks if not check.ok)
    if layout.strategy.averaging:
        return mistake_in(failed.name)
    by_name = {check.name: check for check in checks}
    gradient, loss = by_name["gradient"], by_name["loss"]
    if gradient.ok:
        return later_mistake(failed)

    def of_rows(rows):
        part = {name: value[rows] for name, value in batch.items()}
        right = _alone(layout, step, hardware, len(next(iter(part.values()))))
        return to_host(dict(right.probe(right.placed(start), right.place(part))[2]))

    return likely_mistake(
        arrays_as_written(layout, to_host(dict(many.gradients))),
        gradients,
        mesh=layout.mesh,
        microbatches=step.microbatches,
        gradient_of_rows=of_rows,
        rows=layout.model.batch_size,
        replicas_agree=gradient.replicas_agree,
        loss_agrees=loss.ok,
        tolerance=bounds["gradient"],
    )
