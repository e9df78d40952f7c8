"""How far this process has come, for whoever watches it: counted, and named for people.

A process of several may fall behind or stop. What it does is told here by those who do it, and read
by the watchdog from a thread of its own; in one process nobody reads it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """Where a process is.

    Attributes:
        count: how often it has moved on; processes of one program move on alike.
        where: what it does, for a sentence.
        may_last: whether that may take any time, as compiling does.
    """

    count: int
    where: str
    may_last: bool


class Progress:
    """The progress of this process: the one thing here that changes.

    Attributes:
        meet: waits for the other processes to come as far; does nothing where there are none.
        sharing: how many of them share this machine, and so its memory, this one counted.
    """

    def __init__(self):
        self.meet: Callable[[], None] = lambda: None
        self.sharing = 1
        self._at = Position(0, "starting", may_last=True)
        self._long: list[str] = []

    def at(self, where: str, *, may_last: bool = False) -> None:
        """Move on to something that every process does."""
        self._at = Position(self._at.count + 1, where, may_last)

    @contextmanager
    def long_work(self, what: str, *, together: bool = False) -> Iterator[None]:
        """Within, this process may take its time, and one that waits for it is not worried.

        Args:
            what: it does, as in "compiling".
            together: whether every process does it, and then waits for the others: some
                collectives fail where one process comes 30 s after another.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._long.append(what)
        try:
            yield
            if together and len(self._long) == 1:
                self.meet()
        finally:
            self._long.pop()

    @property
    def position(self) -> Position:
        """Where this process is now."""
        at, long = self._at, self._long[:1]
        return Position(at.count, long[0], may_last=True) if long else at


here = Progress()
"""This process's."""
