"""Ctrl-C and SIGTERM: the command ends soon, with a line, whatever it was doing.

Python hands a signal on only between two of its own steps, and a compilation is one step that may
take minutes. So a thread waits for signals too, and ends the process if Python does not.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 2.0
"""How long Python may take to hand a signal on."""

WORDS = {signal.SIGINT: "stopped", signal.SIGTERM: "terminated"}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


@contextmanager
def stoppable(say: Callable[[int], None]) -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated, or soon ends the process.

    Args:
        say: tells of a signal, by its number, before the process is ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    arrived = threading.Event()

    def interrupt(number, frame):
        arrived.set()
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    before = {number: signal.signal(number, interrupt) for number in WORDS}
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reading, arrived, say), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # which ends the thread


def _wait(reading: int, arrived: threading.Event, say: Callable[[int], None]) -> None:
    """End the process for a signal that Python does not hand on in time."""
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            if number[0] in WORDS and not arrived.wait(PATIENCE_SECONDS):
                with suppress(OSError):
                    say(number[0])
                    sys.stderr.flush()
                os._exit(128 + number[0])
