"""The parent of several processes on one machine: starts them, ends the rest when one fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

PARENT = "JAXPAR_PARENT"
"""The variable by which a process knows who started it, and ends where that has ended."""

SPEAK_SECONDS = 4.0
"""How long the others may take to say what they know, after one of them has ended."""

SAVE_SECONDS = 60.0
"""The same where all were asked to end, and some may be saving."""

TERM_SECONDS = 3.0
"""And then to end after SIGTERM, before SIGKILL."""

STOPPED_SECONDS = 20.0
"""How long a process may be stopped (SIGSTOP) before it is killed; the watchdog is sooner, once
the processes have found each other."""

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status; below 0 the signal that ended it.
        seconds: after the start of all.
        by_us: whether it was ended because of another.
        stopped: whether it was stopped, and killed for that.
    """

    status: int
    seconds: float
    by_us: bool
    stopped: bool = False


def free_port() -> int:
    """A port of this machine's loopback interface that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def parent_of_all() -> int | None:
    """The process that started this one as one of several; None where none did."""
    told = os.environ.get(PARENT, "")
    return os.getppid() if told == str(os.getppid()) else None


class Children:
    """Processes that were started together, and what became of each.

    Attributes:
        ended: by number, how they ended.
        are_asked: whether all of them were asked to end.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        listen: Callable[[int, str], None],
        *,
        environment: Mapping[str, str] | None = None,
        all_heard: bool = False,
    ):
        """Start a process a command.

        Args:
            commands: the words of each.
            listen: called with (number, line) for what a process writes, from several threads.
            environment: variables beside those of this process.
            all_heard: whether process 0 is listened to as well; else it writes where this one does.
        """
        self._started = time.monotonic()
        self.ended: dict[int, Ended] = {}
        self.are_asked = False
        variables = {**os.environ, **(environment or {}), PARENT: str(os.getpid())}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped: dict[int, float] = {}
        self._threads = []
        for number, command in enumerate(commands):
            heard = all_heard or number > 0
            process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL if heard else None,
                stdout=subprocess.PIPE if heard else None,
                stderr=subprocess.STDOUT if heard else None,
                start_new_session=True,  # Ctrl-C is handed on once, as SIGTERM
            )
            self._running[number] = process
            if process.stdout is not None:
                # Daemons: a process of the child's own may keep its output open.
                heard_by = (number, process.stdout, listen)
                thread = threading.Thread(target=_read, args=heard_by, daemon=True)
                thread.start()
                self._threads.append(thread)

    def wait(self, most_seconds: float = float("inf")) -> None:
        """Wait until all have ended; once one fails, the others have a few seconds left.

        Args:
            most_seconds: all are ended after that.
        """
        is_told = False
        while self._running:
            self._look()
            failed = [e.seconds for e in self.ended.values() if e.status]
            over = time.monotonic() - self._started
            due = min(min(failed, default=float("inf")) + self._grace_seconds, most_seconds)
            if over > due + TERM_SECONDS:
                self.signal(signal.SIGKILL)
            elif over > due and not is_told:
                self.signal(signal.SIGTERM)
                is_told = True
            time.sleep(_POLL_SECONDS)
        for thread in self._threads:
            thread.join(TERM_SECONDS)

    def signal(self, number: int) -> None:
        """Send a signal to those that run."""
        for process in self._running.values():
            process.send_signal(number)

    @property
    def pids(self) -> dict[int, int]:
        """The system's numbers of those that run."""
        return {number: process.pid for number, process in self._running.items()}

    @property
    def _grace_seconds(self) -> float:
        """From the first failure until the others are ended."""
        return SAVE_SECONDS if self.are_asked else SPEAK_SECONDS

    def _look(self) -> None:
        """Take down who has ended."""
        seconds = time.monotonic() - self._started
        failed = [e.seconds for e in self.ended.values() if e.status]
        for number, process in list(self._running.items()):
            if (status := process.poll()) is not None:
                late = bool(failed) and seconds > min(failed) + self._grace_seconds
                stopped = seconds - self._stopped.get(number, seconds) > STOPPED_SECONDS
                self.ended[number] = Ended(status, seconds, late, stopped)
                del self._running[number]
            elif not _is_stopped(process.pid):
                self._stopped.pop(number, None)
            elif seconds - self._stopped.setdefault(number, seconds) > STOPPED_SECONDS:
                process.kill()


@contextmanager
def handing_on(children: Children) -> Iterator[list[int]]:
    """Within, Ctrl-C and SIGTERM are handed to the children as SIGTERM, the third one as SIGKILL.

    Yields a list of the signals that came.
    """
    came: list[int] = []

    def hand_on(number, frame):
        came.append(number)
        children.are_asked = True
        children.signal(signal.SIGTERM if len(came) < 3 else signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    waking = signal.set_wakeup_fd(-1)  # whoever waits for a signal there would end this process
    try:
        yield came
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_stopped(pid: int) -> bool:
    """Whether a child is stopped, as SIGSTOP does."""
    looking = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, pid, looking) is not None
    except ChildProcessError:  # it has ended meanwhile
        return False


def _read(number: int, stream: IO[bytes], listen: Callable[[int, str], None]) -> None:
    """Pass on what a process writes, line by line."""
    with stream, suppress(ValueError):
        for line in stream:
            listen(number, line.decode(errors="replace").rstrip("\n"))
