"""Experts broken on purpose, under the layout only: verify catches each."""

from contextlib import contextmanager
from dataclasses import replace

import jax.numpy as jnp
import pytest
from small import cpu, small_layout

from jaxpar.core import hooks
from jaxpar.measures.verify.verify import verify
from jaxpar.models import moe
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")


@contextmanager
def one_place_too_few():
    """A capacity off by one: whoever had the last place of an expert is dropped in silence."""
    right = moe.places_of
    moe.places_of = lambda *args, **kwargs: right(*args, **kwargs) - 1
    try:
        yield
    finally:
        moe.places_of = right


@contextmanager
def experts_in_another_order():
    """An exchange that numbers the devices from the other end, there and back."""

    def named(x, dims):
        return jnp.flip(x, 0) if dims[0] == "experts" else x

    right, hooks.named = hooks.named, named
    try:
        yield
    finally:
        hooks.named = right


@contextmanager
def nothing():
    """The right way, by the same road."""
    yield


def verdict_with(mistake):
    """The verdict on a step whose model makes the mistake; the reference does not."""

    def make(layout):
        def loss(*args, **kwargs):
            with mistake():
                return layout.model.loss(*args, **kwargs)

        return make_step(replace(layout, model=replace(layout.model, loss=loss)))

    return verify(
        small_layout("moe", "expert", "model=2", layers=1), hardware=cpu(), make=make, steps=1
    )


def test_the_road_of_the_mutants_is_right_without_them():
    """What is caught is the mistake and not the wrapping."""
    assert verdict_with(nothing).ok


@pytest.mark.parametrize("mistake", [one_place_too_few, experts_in_another_order])
def test_a_mistake_in_the_exchange_is_caught(mistake):
    """Ten decades above rounding, by the gradient and by the loss."""
    verdict = verdict_with(mistake)
    assert not verdict.ok
    assert verdict.decisive.name == "gradient"
    assert verdict.decisive.error > 1e-3
