"""What every test runs under: sixteen simulated CPU devices, decided before anything starts JAX.

JAX's strict dtype promotion is not on: optax's own bias correction multiplies a float by a count.
"""

from typing import Any

import jax
import pytest

from jaxpar.core.jax_compat import setting
from jaxpar.program.configuration import prefer_cpu
from jaxpar.program.record import QUICK

prefer_cpu()
jax.config.update("jax_num_cpu_devices", 16)


def _compile_in_less_time() -> None:
    """Leave out XLA's newer way to make machine code of fusions, where this XLA lets one choose.

    A law's program is run once or never, and its compilation then takes 1.0 s of 2.8 (a decoder on
    eight devices, jax 0.10.2). The program itself, its collectives with it, is the same.
    """
    older: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x).lower(0.0).compile(QUICK | older)
    except jax.errors.JaxRuntimeError as error:
        assert "No such compile option" in str(error), error
    else:
        QUICK.update(older)


_compile_in_less_time()


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Files go to an empty folder, and nothing is kept in the user's cache."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    threshold = setting("jax_persistent_cache_min_compile_time_secs")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)
