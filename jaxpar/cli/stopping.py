"""Ctrl-C and SIGTERM: the command ends soon, with a line, whatever it was doing.

Python hands a signal on only between two of its own steps, and a compilation is one step that may
take minutes. So a thread waits for signals too, and ends the process if Python does not.

Training is asked first: the step is finished and saved. A second signal ends it at once.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE_SECONDS = 2.0
"""From a signal to the end of the command."""

STOPPED = {"stopped": 128 + signal.SIGINT, "terminated": 128 + signal.SIGTERM}
"""What is said of a command that a signal ends, and its exit status, as shells tell it."""

_WORDS: dict[int, str] = {signal.SIGINT: "stopped", signal.SIGTERM: "terminated"}


class _Asking:
    """Whether the first signal only asks, and whether it has come, to Python and to the thread."""

    def __init__(self):
        self.first, self.heard = threading.Event(), threading.Event()
        self.say: Callable[[str], None] = lambda word: None

    def asks(self, heard: threading.Event, number: int) -> bool:
        """Whether a signal asks, and does not end: the first that `heard` is set for."""
        if not self.first.is_set() or heard.is_set():
            return False
        heard.set()
        if heard is self.heard:
            self.say(_WORDS[number])
        return True


_asking = _Asking()
"""One, as signals are the process's."""


@contextmanager
def asked_first(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Within, the first signal only makes the function that is yielded return true.

    Args:
        say: told by which word it asked, "stopped" or "terminated", when it comes.
    """
    _asking.say = say
    _asking.heard.clear()
    _asking.first.set()
    try:
        yield _asking.heard.is_set
    finally:
        _asking.first.clear()


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where Ctrl-C would be."""


def word_of(error: KeyboardInterrupt) -> str:
    """What is said of a command that this error ends."""
    return "terminated" if isinstance(error, Terminated) else "stopped"


@contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[None]:
    """Within, Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated, once.

    The process is ended if this is not left soon after.

    Args:
        say: tells that the command was "stopped" or "terminated".
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    left = threading.Event()

    def interrupt(number, frame):
        if _asking.asks(_asking.heard, number):
            return
        for every in _WORDS:
            signal.signal(every, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def unraisable(lost):
        # Raised where nobody can catch it, as in a destructor: the thread ends the process then.
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            reporting(lost)

    reporting, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {number: signal.signal(number, interrupt) for number in _WORDS}
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reading, left, say), daemon=True).start()
    try:
        yield
    finally:
        left.set()
        sys.unraisablehook = reporting
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # which ends the thread


def _wait(reading: int, left: threading.Event, say: Callable[[str], None]) -> None:
    """End the process for a signal that does not end the command in time."""
    heard = threading.Event()
    with open(reading, "rb", buffering=0) as numbers:
        while number := numbers.read(1):
            word = _WORDS.get(number[0])
            if word and _asking.asks(heard, number[0]):
                continue
            if word and not left.wait(PATIENCE_SECONDS):
                with suppress(OSError):
                    say(word)
                    sys.stderr.flush()
                os._exit(STOPPED[word])
