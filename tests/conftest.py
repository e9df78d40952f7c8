"""What every test runs under: sixteen simulated CPU devices, decided before anything starts JAX.

JAX's strict dtype promotion is not on: optax's own bias correction multiplies a float by a count.
"""

import gc
import os
from tempfile import TemporaryDirectory

import jax
import pytest

from jaxpar.core.jax_compat import setting
from jaxpar.program.configuration import prefer_cpu
from jaxpar.program.quick import FEW_PASSES, QUICK

if "cuda" not in os.environ.get("JAX_PLATFORMS", ""):  # which lets a GPU's own laws run
    prefer_cpu()
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_numpy_rank_promotion", "raise")

# A law's program is run once or never: its compilation costs more than its time. Each worker has a
# core, so that code made in parallel only adds to the work.
FASTER = {**FEW_PASSES, "xla_cpu_parallel_codegen_split_count": 1}
folder = TemporaryDirectory()
if jax.__version_info__ < (0, 11):
    # The older way of making code of fusions takes a third of the time. Programs for described GPUs
    # have most kernels in common: each is made once.
    FASTER |= {
        "xla_cpu_use_fusion_emitters": False,
        "xla_gpu_enable_llvm_module_compilation_parallelism": True,
        "xla_gpu_kernel_cache_file": f"{folder.name}/kernels",
    }
QUICK.update(FASTER)

# What JAX traces is many small objects, most of which are kept: to look through them costs a tenth.
gc.set_threshold(200_000, 20, 100)


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
