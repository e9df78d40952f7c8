"""Options of XLA's that are published for training on GPUs, by a name: `--set xla.preset=NAME`.

Each was compared on described H100s by `bench gpu_program`: how much communication it hides, and
what it costs in memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from jaxpar.core.errors import unknown

TRAINING = {
    "xla_gpu_copy_insertion_use_region_analysis": True,
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_enable_triton_gemm": False,
}
"""What every described GPU is compiled with: the scheduler that real training runs use, and matrix
products as cuBLAS calls, because the tiles of Triton's would be picked by timing on a device that
is not there. Copies are left out where live ranges allow it: it hides as much communication as
without, and spares 13 GB of memory traffic a step of Llama 2 7B, 65 of 70B (`bench gpu_program`).
"""


@dataclass(frozen=True)
class Preset:
    """Some of XLA's options.

    Attributes:
        options: by XLA's names.
        does: what they do to a program, a sentence.
        source: where they are published.
    """

    options: Mapping[str, bool | int | str]
    does: str
    source: str


PIPELINED = {
    "xla_gpu_enable_pipelined_all_gather": True,
    "xla_gpu_enable_pipelined_reduce_scatter": True,
    "xla_gpu_enable_pipelined_all_reduce": True,
}
"""Options that XLA had until jax 0.10; that of jax 0.11 and 0.12 knows none of them."""

PRESETS = {
    "overlap": Preset(
        options={
            "xla_gpu_enable_while_loop_double_buffering": True,
            **(PIPELINED if jax.__version_info__ < (0, 11) else {}),
        },
        does="collectives of one turn of a loop over layers run beside the work of another, where "
        "XLA can pipeline them (jax 0.10)",
        source="NVIDIA JAX-Toolbox, Tips for High-Performance LLMs with JAX and XLA, "
        "docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance",
    ),
}


def preset_options(name: object) -> Mapping[str, bool | int | str]:
    """The options of a preset.

    Raises:
        RequestError: there is none of this name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise unknown("preset of XLA's options", str(name), PRESETS)
    return PRESETS[name].options
