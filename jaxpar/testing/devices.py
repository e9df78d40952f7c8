"""Simulated CPU devices for a project's own tests.

A plugin of pytest, by name:

    pytest_plugins = ["jaxpar.testing.devices"]

    def test_my_layout(simulated_devices):
        simulated_devices(8)
        layout = jaxpar.lay_out(my_model, strategy="fsdp", mesh="data=8")
        assert_sharded_equals_single(layout)  # of jaxpar.testing.programs
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxpar.core.kinds import whole
from jaxpar.program.configuration import simulate_devices

MOST_DEVICES = 512


@pytest.fixture
def simulated_devices() -> Callable[[int], list[Any]]:
    """(count) -> that many simulated CPU devices of this process.

    JAX counts them when it starts: a test that asks for more than an earlier one had is skipped,
    and says what to do.
    """

    def of(count: int) -> list[Any]:
        simulate_devices(whole("simulated devices", count, least=1, most=MOST_DEVICES))
        found = jax.devices("cpu")
        if len(found) < count:
            pytest.skip(
                f"JAX has started with {len(found)} CPU devices, and this test needs {count}: ask "
                "for the most in the first test, or set XLA_FLAGS="
                f"--xla_force_host_platform_device_count={count}"
            )
        return found[:count]

    return of
