"""The watchdog: one thread a process, that ends all of them, with a sentence, if one is lost.

A process that is killed is known at once, by its connection; one that is stopped or hangs by what
it no longer says. JAX alone ends the others without a word, or after half an hour.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from jaxpar.core.progress import Position, here
from jaxpar.core.source_lines import own_file
from jaxpar.runtime.abort import before_abort, exit_with
from jaxpar.runtime.star import Hub, Spoke
from jaxpar.runtime.stop_together import StopTogether
from jaxpar.runtime.verdict import Seen, behind, names_of, silent

PATIENCE_SECONDS = 30.0
"""How long a process may be silent, or behind the others."""

BEAT_SECONDS = 1.0
REFUSING_SECONDS = 3.0
"""How long after one process refused a request the others may take to refuse it themselves."""

LOST = 1
"""The exit status of a process that another one's end has ended."""


@dataclass(frozen=True)
class Who:
    """Which process speaks, and to whom its parent answers.

    Attributes:
        program: how the command was started.
        number, count: which process this is, and how many there are.
        parent: the process that started all of them and ends them; None where nobody does.
    """

    program: str
    number: int
    count: int
    parent: int | None = None

    def __str__(self) -> str:
        return f"process {self.number} of {self.count}"


class Watchdog:
    """Watches the other processes of a program until it is told that this one leaves.

    Attributes:
        last_good: what training can go on from, for the sentence; "" for nothing.
        stop: when all stop, if one of them is asked to.
    """

    def __init__(self, who: Who, star: Hub | Spoke, patience_seconds: float = PATIENCE_SECONDS):
        self.who, self.patience_seconds = who, patience_seconds
        self.last_good = ""
        self.stop = StopTogether(who.number, who.count, star.send)
        self._star = star
        now = time.monotonic()
        self._seen = {n: Seen(Position(0, "starting", True), now, now) for n in range(who.count)}
        self._left: set[int] = set()
        self._due: tuple[float, str] | None = None
        self._leaving = threading.Event()
        self._said = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; whatever aborts this process from now on says a sentence first."""
        before_abort(self._aborted)
        self._thread.start()

    def leave(self, why: str = "", *, refused: bool = False) -> None:
        """Stop watching, and let the others know.

        Args:
            why: a sentence about what ended this process; "" where it is done, as they are.
            refused: whether they are likely to refuse the same.
        """
        if self._leaving.is_set():
            return
        self._leaving.set()
        self._thread.join(10 * BEAT_SECONDS)
        self._star.send({"left": why, "refused": refused})
        if refused and isinstance(self._star, Hub):
            # With process 0 JAX's coordination ends, which would abort those about to refuse.
            self._star.wait_until_alone(REFUSING_SECONDS)
        before_abort(_end_soon if why else None)
        self._star.close()

    def end(self, sentence: str) -> None:
        """End this process now, with a sentence; nothing of it can be waited for any more."""
        if self._leaving.is_set() or not self._said.acquire(blocking=False):
            return
        self._star.send({"verdict": sentence})
        more = f"; last good checkpoint: {self.last_good}" if self.last_good else ""
        exit_with(f"{self.who.program}: {self.who}: {sentence}{more}{_stands()}", LOST)

    def wait_for_verdict(self, seconds: float) -> None:
        """Give this thread's watchdog time to end the process, and return if it does not."""
        self._thread.join(seconds)

    def _watch(self) -> None:
        """Look at the others every second until this process leaves."""
        before = due = time.monotonic()
        while not self._leaving.is_set():
            came = self._star.poll(min(max(0.0, due - time.monotonic()), BEAT_SECONDS / 5))
            now = time.monotonic()
            if now - before > self.patience_seconds / 3:  # this process itself was stopped
                self._seen = {n: Seen(s.position, now, now) for n, s in self._seen.items()}
            before = now
            self.stop.tick()
            for number, message in came:
                if sentence := self._heard(number, message, now):
                    self.end(sentence)
            if now >= due:  # not at each message: an answer to every answer would never end
                due = now + BEAT_SECONDS
                if sentence := self._judged(now):
                    self.end(sentence)

    def _judged(self, now: float) -> str:
        """Say where this process is, and return a sentence about another that is lost."""
        own = here.position
        mine = {"count": own.count, "where": own.where, "may_last": own.may_last}
        self._star.send({"at": mine})
        number = self.who.number
        self._seen[number] = self._seen[number].told(own, now)
        if self.who.parent is not None and os.getppid() != self.who.parent:
            return "the process that started it has ended"
        if self._due and now > self._due[0]:
            return self._due[1]
        if number:  # only process 0 hears all others
            return silent({0: self._seen[0]}, now, self.patience_seconds)
        seen = {n: s for n, s in self._seen.items() if n not in self._left}
        return silent(seen, now, self.patience_seconds) or behind(seen, now, self.patience_seconds)

    def _heard(self, number: int, message: dict[str, Any] | None, now: float) -> str:
        """Take in what a process said; a sentence if it is lost."""
        if message is None:
            if number in self._left:
                return ""
            was = self._seen[number].position.where
            return f"process {number} has ended without a word (when last heard, it was {was})"
        if "verdict" in message:
            return str(message["verdict"])
        if "left" in message:
            self._left.add(number)
            if message["left"]:
                wait = REFUSING_SECONDS if message["refused"] else 0.0
                self._due = now + wait, f"process {number} has ended ({message['left']})"
            return ""
        if "stop" in message:
            self.stop.heard(number, message)
        at = Position(**message["at"]) if "at" in message else self._seen[number].position
        self._seen[number] = self._seen[number].told(at, now)
        return ""

    def _aborted(self) -> None:
        """What runs where this process aborts: it says why, if the thread does not before."""
        time.sleep(2 * BEAT_SECONDS)
        if self._leaving.is_set():
            _end_soon()
        if self._due:  # one that refused, and the abort is what its end does to this process
            self.end(self._due[1])
        now = time.monotonic()
        left = (self.who.number, *self._left)
        lost = {n: s for n, s in self._seen.items() if n not in left and now - s.heard > 4}
        since = max((now - s.heard for s in lost.values()), default=0.0)
        told = f" for {since:.0f} s" if since else ""
        self.end(f"{names_of(lost) or 'another process has'} not answered{told}")
        os._exit(LOST)


def _end_soon() -> None:
    """What runs where this process aborts on its way out: its main thread ends it first."""
    time.sleep(10 * BEAT_SECONDS)
    os._exit(LOST)


def _stands() -> str:
    """Where this process's main thread stands in a person's own code; "" where it does not."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    files = []
    while frame is not None:
        files.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    at = own_file(file for file, _ in files)
    if at is None or "site-packages" in files[at][0]:
        return ""
    return f"; this process is at {files[at][0]}:{files[at][1]}"
