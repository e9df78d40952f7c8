"""Orbax, imported when a checkpoint is first read or written: it adds handlers to Python's log."""

from functools import cache
from typing import Any


@cache
def orbax() -> Any:
    """The module `orbax.checkpoint`."""
    import orbax.checkpoint
    import orbax.checkpoint.checkpoint_managers  # noqa: F401  (which the first does not name)

    return orbax.checkpoint
