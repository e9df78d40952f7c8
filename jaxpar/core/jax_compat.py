"""What of JAX is private, or differs between the versions that jaxpar runs on; and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any


def traced_at(source_info: Any) -> Iterator[tuple[CodeType, int]]:
    """Where Python stood when an operation was traced: code and offset in it, innermost first."""
    traceback = source_info.traceback
    return zip(*traceback.raw_frames(), strict=True) if traceback else iter(())
