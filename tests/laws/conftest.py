"""What the laws share: programs compiled once in a session, in a folder that goes with it."""

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Many cases share their one-device reference: keep what XLA compiles till the end."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    reset_cache()  # JAX looks for the folder once, and may have looked already
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()
