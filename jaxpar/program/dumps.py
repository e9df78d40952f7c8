"""What XLA writes down while it compiles: the module after partitioning, buffers, live ranges.

Asked for by options of one compilation, into a folder that is gone when it was read. It costs next
to nothing. A program that JAX takes from its compilation cache is not compiled, so whoever wants
this compiles past the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxpar.program.configuration import compiled_anew

_PARTITIONED = "after_spmd-partitioning"
"""What the file of a module right after partitioning has in its name, for CPUs and GPUs."""

_BUFFERS = "after_optimizations-buffer-assignment.txt"
_LIVE = "after_optimizations-live-range.txt"


@dataclass
class Dumps:
    """Texts that XLA wrote of one program; "" for one that it did not write.

    Attributes:
        partitioned: the module right after partitioning, collectives not yet combined.
        buffers: the buffer assignment.
        live_ranges: the schedule, and from when to when each value is live in it.
        options: by which XLA was told to write them.
    """

    partitioned: str = ""
    buffers: str = ""
    live_ranges: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@contextmanager
def dumped(module: str) -> Iterator[Dumps]:
    """Within, whoever compiles with `options` has the texts of a module written; read at the end.

    Args:
        module: the name of what is compiled, such as "jit_update".
    """
    with TemporaryDirectory(prefix="jaxpar-dump-") as folder, compiled_anew():
        dumps = Dumps()
        dumps.options = {
            "xla_dump_to": folder,
            "xla_dump_hlo_as_text": True,
            "xla_dump_hlo_module_re": f"{module}.*",
            "xla_dump_hlo_pass_re": "spmd-partitioning",
        }
        yield dumps
        dumps.partitioned = _read(folder, _PARTITIONED)
        dumps.buffers = _read(folder, _BUFFERS)
        dumps.live_ranges = _read(folder, _LIVE)


@contextmanager
def no_dumps() -> Iterator[Dumps]:
    """Within, XLA is told to write nothing."""
    yield Dumps()


def _read(folder: str, named: str) -> str:
    """The text of the file with this in its name; "" where there is none."""
    found = sorted(path for path in Path(folder).iterdir() if named in path.name)
    return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""
