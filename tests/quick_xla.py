"""XLA's options with which the tests compile, in their own process and in those that they start.

A law's program is run once or never: its compilation costs more than its time.
"""

from collections.abc import Mapping
from typing import Any

import jax

from jaxpar.program.quick import FEW_PASSES, QUICK

# Each worker has a core, so that code made in parallel only adds to the work.
FASTER: dict[str, Any] = {
    **QUICK,
    **FEW_PASSES,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_gpu_force_compilation_parallelism": 1,
}
if jax.__version_info__ < (0, 11):
    # The older way of making code of fusions takes a third of the time.
    FASTER["xla_cpu_use_fusion_emitters"] = False


def as_flags(options: Mapping[str, Any]) -> str:
    """Options as XLA reads them from its variable."""
    said = {n: str(x).lower() if isinstance(x, bool) else x for n, x in options.items()}
    return " ".join(f"--{name}={value}" for name, value in said.items())


QUICKLY = {"XLA_FLAGS": as_flags(FASTER)}
"""Variables of a process that compiles anew."""
