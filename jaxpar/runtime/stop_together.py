"""After which step all processes stop, once one of them was asked to: none may do a step alone.

A process that is asked tells the others. Each then holds its next step back for a moment and says
which one it has begun, from the watchdog's thread, so that one that waits for a collective says it
too. All stop after the latest of these.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class StopTogether:
    """What one process knows of it.

    The methods `tick` and `heard` are the watchdog's, in its thread; the others are anybody's.
    """

    def __init__(self, number: int, count: int, send: Callable[[dict[str, Any]], None]):
        """As nobody was asked.

        Args:
            number, count: which process this is, of how many.
            send: tells process 0, or if this is process 0 all others.
        """
        self._number, self._count, self._send = number, count, send
        self._gate = threading.Lock()
        self._step = 0
        self._before: int | None = None
        self._is_asked = self._is_told = self._is_held = False
        self._begun: dict[int, int] = {}

    def ask(self) -> None:
        """Ask all processes to stop soon; may be called by a handler of a signal."""
        self._is_asked = True

    def is_due(self, step: int) -> bool:
        """Whether to stop before this step: said before each step, in every process alike."""
        with self._gate:
            self._step = step
            return self._before is not None and step >= self._before

    def tick(self) -> None:
        """Tell the others, if this process was asked."""
        if self._is_asked and not self._is_told:
            self._is_told = True
            if self._number:
                self._send({"stop": "asked"})
            else:
                self._hold()

    def heard(self, number: int, message: dict[str, Any]) -> None:
        """Take in what a process said of stopping.

        Args:
            number: of the process.
            message: its "stop" is "asked", "hold", or a step.
        """
        said = message["stop"]
        if said == "asked" or said == "hold":
            self._hold()
        elif self._number:
            self._decide(said)
        else:
            self._begun[number] = said
            self._decide_if_known()

    def _hold(self) -> None:
        """Hold the next step back, and say which one has begun."""
        if self._is_held:
            return
        self._is_held = True
        self._gate.acquire()
        if self._number:
            self._send({"stop": self._step})
        else:
            self._send({"stop": "hold"})
            self._begun[0] = self._step
            self._decide_if_known()

    def _decide_if_known(self) -> None:
        """Let all stop before the step after the latest, once each has said where it is."""
        if len(self._begun) == self._count:
            before = max(self._begun.values()) + 1
            self._send({"stop": before})
            self._decide(before)

    def _decide(self, before: int) -> None:
        """Go on until this step."""
        self._before = before
        self._gate.release()
