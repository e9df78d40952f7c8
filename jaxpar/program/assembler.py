"""Stand-ins for CUDA's assembler and linker, where a program is compiled and never run.

XLA hands the kernels of a program for GPUs to `ptxas` and `nvlink`, and refuses to compile where
they are not installed. Of a described GPU nobody reads machine code: what XLA schedules, moves and
allocates is decided before. So a program is compiled without CUDA's tools, and a third sooner.
"""

import atexit
import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

TOOLS = ("ptxas", "nvlink")
OPTION = "xla_gpu_cuda_data_dir"
"""XLA's option for where CUDA's tools are."""

_STAND_IN = """#!/bin/sh
case $1 in --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit;; esac
while [ "$1" != -o ]; do shift; done
echo nothing > "$2"
"""
"""Says a version, and writes a file where it is asked for one."""


def without_machine_code() -> dict[str, str]:
    """XLA's options by which it makes none; {} where no file can be run from a temporary folder."""
    folder = _folder()
    return {} if folder is None else {OPTION: folder.name}


@cache
def _folder() -> "TemporaryDirectory[str] | None":
    """The folder of the stand-ins, which goes with the process."""
    try:
        folder = TemporaryDirectory(prefix="jaxpar-")
        atexit.register(folder.cleanup)
        tools = Path(folder.name, "bin")
        tools.mkdir()
        for name in TOOLS:
            tool = tools / name
            tool.write_text(_STAND_IN, encoding="utf-8")
            tool.chmod(0o755)
    except OSError:
        return None
    return folder if os.access(tools / TOOLS[0], os.X_OK) else None
