"""What every test runs under: sixteen simulated CPU devices, decided before anything starts JAX.

JAX's strict dtype promotion is not on: optax's own bias correction multiplies a float by a count.
"""

import gc
import os
from tempfile import TemporaryDirectory
from typing import Any

import jax
import pytest
from quick_xla import FASTER, as_flags

from jaxpar.core.jax_compat import READ_XLA_FLAGS, setting
from jaxpar.measures.verify.reference import reference
from jaxpar.measures.verify.simulation import simulation
from jaxpar.measures.verify.states import on_devices, to_host
from jaxpar.program.configuration import prefer_cpu
from jaxpar.program.quick import QUICK
from jaxpar.program.record import Program

if "cuda" not in os.environ.get("JAX_PLATFORMS", ""):  # which lets a GPU's own laws run
    prefer_cpu()
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_numpy_rank_promotion", "raise")

folder = TemporaryDirectory()
QUICK.update(FASTER)
if jax.__version_info__ < (0, 11):
    # Programs for described GPUs have most kernels in common: each is made once.
    QUICK.update(
        xla_gpu_enable_llvm_module_compilation_parallelism=True,
        xla_gpu_kernel_cache_file=f"{folder.name}/kernels",
    )

# So is what is compiled with no options, op by op or for speed: a draw in a seventh of the time.
# XLA reads the variable once; whoever finds it set later takes it for a person's.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {as_flags(QUICK)}")
    exec(READ_XLA_FLAGS)

# What JAX traces is many small objects, most of which are kept: to look through them costs a tenth.
gc.set_threshold(200_000, 20, 100)


def pytest_collection_finish():
    """What is imported stays, so it is not looked through again."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def ranks_promoted():
    """Arrays of fewer dims are broadcast, as in the models that people write; ours do not."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def drawn_once(request, monkeypatch):
    """First states are drawn on one device, once for all layouts of a model, and put on theirs.

    The program that draws one sharded takes a third of a case's time, so it is compiled where it is
    judged: in a test of this mark, see `test_program` and `test_numbers`. No program is asked what
    memory drawing takes.
    """
    if request.node.get_closest_marker("draws_sharded"):
        return

    def put(program, seed=0):
        step, hardware = program.step, program.hardware
        with jax.enable_x64(step.is_wide):
            if step.layout.strategy.averaging:
                alone: Any = simulation(step.layout, step, hardware)
            else:
                how = {"optimizer": step.optimizer, "microbatches": step.microbatches}
                alone = reference(step.layout.model, hardware=hardware, **how)
            return on_devices(program, to_host(alone.init(seed)))

    monkeypatch.setattr(Program, "init", put)
    monkeypatch.setattr(Program, "init_memory", None)
