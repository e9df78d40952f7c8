"""Layouts compiled in processes of their own, as many at once as there are cores.

A layout that brings its process down is refused, and the next has another process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any

COMMAND = (sys.executable, "-m", "jaxpar.search.worker")


def compile_all(
    cases: Sequence[Mapping[str, Any]], *, until: float, workers: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (number, what was found) of cases, in the order in which they are done.

    Args:
        cases: what a `Case` is made of, JSON-ready, the most promising first.
        until: by `time.monotonic`: no case is begun later, and who works then is ended.
        workers: how many processes.
    """
    waiting: Queue[tuple[int, Mapping[str, Any]]] = Queue()
    done: Queue[tuple[int, Mapping[str, Any]]] = Queue()
    for pair in enumerate(cases):
        waiting.put(pair)
    team = [_Worker(waiting, done, until) for _ in range(min(workers, len(cases)))]
    try:
        while time.monotonic() < until:
            try:
                yield done.get(timeout=0.05)
            except Empty:
                if not any(one.is_alive() for one in team) and done.empty():
                    return
    finally:
        for one in team:
            one.end()


class _Worker(threading.Thread):
    """A thread that hands cases to a process of its own, one after the other."""

    def __init__(self, waiting: Queue, done: Queue, until: float):
        super().__init__(daemon=True)
        self.waiting, self.done, self.until = waiting, done, until
        self.process: subprocess.Popen | None = None
        self.ended = False
        self.start()

    def run(self) -> None:
        """Take cases until there are none, or no time."""
        try:
            while not self.ended and time.monotonic() < self.until:
                try:
                    number, case = self.waiting.get_nowait()
                except Empty:
                    break
                found = self._asked(case)
                if found is not None:
                    self.done.put((number, found))
        finally:
            self._end_process()

    def _asked(self, case: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What the process answers; None when it was ended because time is up."""
        process = self.process = self.process or _started()
        assert process.stdin is not None and process.stdout is not None
        line = ""
        if not self.ended:
            with suppress(OSError):  # a pipe that broke
                process.stdin.write(json.dumps(case) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
        if line:
            return json.loads(line)
        self._end_process()
        return None if self.ended else {"refusal": "compiling it ended the process"}

    def _end_process(self) -> None:
        """End this worker's process, if it has one."""
        if self.process is not None:
            self.process.kill()
            with suppress(OSError), self.process:  # which waits for it, and closes its pipes
                self.process = None

    def end(self) -> None:
        """Let it end, whatever its process does; returns when it has."""
        self.ended = True
        process = self.process
        if process is not None:
            process.kill()
        self.join()


def _started() -> subprocess.Popen:
    """A new process, which imports this jaxpar and whatever the command could import."""
    own = str(Path(__file__).parents[2])
    path = os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
