"""A loss scale changes no gradient that is representable, and saves those that float16 is not."""

from functools import partial

import numpy as np
import pytest
from small import cpu, small_layout

from jaxpar.core.errors import RequestError
from jaxpar.inference.probe import probe_batch
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import compile_step
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

BOTH = "data=4,model=2"
CASES = (
    ("data", BOTH, "auto", 2),
    ("zero1", BOTH, "auto", 1),
    ("zero2", BOTH, "manual", 2),
    ("fsdp+tensor", BOTH, "manual", 1),
    ("replica+fsdp", "replica=2,data=4", "auto", 2),
)


@pytest.mark.parametrize(("strategy", "mesh", "mode", "microbatches"), CASES)
def test_a_scaled_step_is_the_unscaled_one(strategy, mesh, mode, microbatches):
    """Times 1,024 and back: in float64 nothing differs from one device without a scale.

    A power of two moves the exponent alone, so what is left is the order of sums: below 1e-12.
    """
    make = partial(make_step, mode=mode, microbatches=microbatches, loss_scale=1024)
    verdict = verify(small_layout("mlp", strategy, mesh), hardware=cpu(), make=make)
    assert verdict.dtype == "float64"
    for check in verdict.checks:
        assert check.error < 1e-12, check


def gradients_of(*, weight, strategy="single", mode="auto", loss_scale=0.0, compute_dtype=None):
    """A decoder's gradients on a batch in which every position weighs `weight`."""
    layout = small_layout("transformer", strategy, BOTH, layers=1, compute_dtype=compute_dtype)
    program = compile_step(
        make_step(layout, mode=mode, loss_scale=loss_scale), hardware=cpu(), for_speed=False
    )
    batch = probe_batch(layout.model, 0)
    batch["weight"] = np.full_like(batch["weight"], weight)
    gradients, _, _ = program.gradients(program.init(0), program.place(batch))
    return {path: np.asarray(value, np.float64) for path, value in gradients.items()}


def worst(got, right):
    return max(np.linalg.norm(got[p] - right[p]) / np.linalg.norm(right[p]) for p in right)


@pytest.mark.parametrize(("strategy", "mode"), [("zero2", "manual"), ("fsdp", "auto")])
def test_small_gradients_underflow_in_float16_but_for_a_scale(strategy, mode):
    """The unit of the weights must not matter, and 2**-20 a position is lost in float16.

    Its smallest number is 2**-24. Against one device in float32: with a scale of 2**20 the worst
    array is off by float16's rounding, a few times 2**-11; without it one is lost entirely.
    """
    right = gradients_of(weight=1.0)
    got = partial(
        gradients_of, weight=2.0**-20, strategy=strategy, mode=mode, compute_dtype="float16"
    )
    assert worst(got(loss_scale=2.0**20), right) < 1e-2
    assert worst(got(), right) > 0.9


def trained_once(loss_scale):
    """The state before and after an update, whole, and what the update told."""
    layout = small_layout("mlp", "zero1", BOTH)
    optimizer = optimizer_of(Training(loss_scale=loss_scale), layout)
    step = make_step(layout, optimizer=optimizer, loss_scale=loss_scale)
    program = compile_step(step, hardware=cpu(), for_speed=False)
    batch = program.place(probe_batch(layout.model, 0))
    before = program.init(0).parameters
    state, metrics = program.update(program.init(0), batch)
    moved = {
        p: np.abs(np.asarray(v) - np.asarray(before[p])).max() for p, v in state.parameters.items()
    }
    return moved, state, metrics


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    """A scale that overflows float32 moves no parameter; a fit one moves all and skips none."""
    moved, state, metrics = trained_once(2.0**127)
    assert not any(moved.values())
    assert (int(metrics["skipped"]), int(state.step)) == (1, 1)
    moved, state, metrics = trained_once(2.0**10)
    assert all(moved.values())
    assert int(metrics["skipped"]) == 0


@pytest.mark.parametrize("scale", [1000, -1024, float("inf"), float("nan")])
def test_a_scale_that_would_change_digits_is_refused(scale):
    """Only powers of two, from Training as from make_step."""
    for ask in (partial(make_step, small_layout("mlp", "data", BOTH)), Training):
        with pytest.raises(RequestError, match="loss_scale=.*: "):
            ask(loss_scale=scale)
