"""What is said where C++ aborts this process, as JAX's coordination does: no exception is raised.

Python's own handler of SIGABRT would run in the main thread, later; the process is gone by then. So
the handler is a C function, which takes Python's lock in whatever thread aborts.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_LIBC = ctypes.CDLL(None)
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int)
_LIBC.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_LIBC.signal.restype = ctypes.c_void_p

_handler: Any = None
"""The one that is set: C does not keep it alive."""


def before_abort(say: Callable[[], None] | None) -> None:
    """Call `say` in the thread that aborts this process, before it ends; None: nothing is called.

    It may end the process with a status of its own, by `os._exit`.
    """
    global _handler
    _handler = None if say is None else _CALLBACK(lambda number: say())
    _LIBC.signal(int(signal.SIGABRT), ctypes.cast(_handler, ctypes.c_void_p) if _handler else None)


def exit_with(line: str, status: int) -> None:
    """Write a line to standard error and end the process; nothing of it is waited for."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace"))
    os._exit(status)
