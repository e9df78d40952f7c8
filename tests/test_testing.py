"""What jaxpar offers to a project's own tests: layouts held to one device, simulated devices."""

from dataclasses import replace

import optax
import pytest
from small import small_layout

import jaxpar
from jaxpar.testing.programs import assert_sharded_equals_single

pytest_plugins = ["jaxpar.testing.devices"]


def test_a_layout_is_held_to_one_device():
    """With the project's own optimizer; gradients a hundredth too large are told."""
    layout = small_layout("mlp", "data", "data=4")

    def own(layout):
        return jaxpar.make_step(layout, optimizer=optax.sgd(0.1))

    assert_sharded_equals_single(layout, make=own, steps=1)

    def wrong(layout):
        step = own(layout)

        def probe(state, batch):
            new, metrics, gradients = step.probe(state, batch)
            return new, metrics, {path: 1.01 * each for path, each in gradients.items()}

        return replace(step, probe=probe)

    with pytest.raises(AssertionError, match="MISMATCH"):
        assert_sharded_equals_single(layout, make=wrong, steps=1)


def test_simulated_devices_are_there_or_the_test_is_skipped(simulated_devices):
    """As many as are asked for; more than JAX started with cannot come later."""
    assert len(simulated_devices(2)) == 2
    with pytest.raises(pytest.skip.Exception, match="JAX has started with"):
        simulated_devices(500)
