"""What Orbax prints of its threads' errors, which reach us as exceptions too, kept back."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpar.core.errors import words_of

_folders: set[str] = set()
"""Of checkpoints that are, or were, read or written here: threads may speak of them later."""

_within: list[Path] = []


left_waiting = threading.Event()
"""Whether a save failed: Orbax's threads may wait ten minutes for what does not come, and Python,
where it ends, for them."""


@contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Within, Orbax's threads print no tracebacks of what it raises where it is waited for.

    What Orbax logs meanwhile is kept back, and what it logs of this folder for good.
    """
    _folders.add(str(folder))
    _within.append(folder)
    logging.getLogger("absl").addFilter(_is_shown)
    policy, uncaught = asyncio.get_event_loop_policy(), threading.excepthook
    asyncio.set_event_loop_policy(_Policy())

    def of_others(error: threading.ExceptHookArgs) -> None:
        if not any(place in str(error.exc_value) for place in _folders):
            uncaught(error)

    threading.excepthook = of_others
    try:
        yield
    finally:
        _within.pop()
        asyncio.set_event_loop_policy(policy)
        if not left_waiting.is_set():  # else its threads may fail later
            threading.excepthook = uncaught


def said(error: Exception) -> str:
    """What an error says, without TensorStore's account of how it was to be read."""
    return words_of(error).partition(" [tensorstore_spec")[0].partition(". See full Ten")[0]


def _is_shown(record: logging.LogRecord) -> bool:
    """Whether a record of the log is shown: not what Orbax says within, or of those folders."""
    if record.levelno < logging.WARNING or "/orbax/" not in record.pathname:
        return True
    message = f"{record.getMessage()} {record.exc_info}"
    return not _within and not any(folder in message for folder in _folders)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop to which one may speak when it is closed.

    Orbax closes its loop when one read has failed. Others are under way then, and each of them
    would print a traceback when it is done.
    """

    def call_soon_threadsafe(self, callback, *args, context=None):
        """Let the loop call a function, unless it has ended."""
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)  # which nobody calls

    def call_exception_handler(self, context):
        """Log what nobody catches, but not the errors of those others."""
        if "never retrieved" not in context.get("message", ""):
            super().call_exception_handler(context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    """Makes such loops."""

    def new_event_loop(self):
        """A new loop."""
        return _Loop()
