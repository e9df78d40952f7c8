"""Who keeps the others waiting: judged from what every process said of itself, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxpar.core.progress import Position

LEARNT = 4
"""Moves after which it is known how long one takes; the first ones take longer."""

LONGER = 10.0
"""Times the longest move so far that the next one may take, where all processes are in it."""


@dataclass(frozen=True)
class Seen:
    """What is known of one process; times are this machine's monotonic seconds.

    Attributes:
        position: where it said it was.
        heard: when it last said anything.
        moved: when its position last changed.
        longest_seconds: its longest move so far, of those that may not take any time.
    """

    position: Position
    heard: float
    moved: float
    longest_seconds: float = 0.0

    def told(self, position: Position, now: float) -> Seen:
        """The same after it said where it is."""
        if position == self.position:
            return Seen(position, now, self.moved, self.longest_seconds)
        usual = not self.position.may_last and self.position.count > 2
        took = now - self.moved if usual else 0.0
        return Seen(position, now, now, max(self.longest_seconds, took))


def silent(seen: Mapping[int, Seen], now: float, patience_seconds: float) -> str:
    """A sentence about processes that say nothing any more; "" for none.

    Half of the patience is enough, but for what may keep Python from saying anything.

    Args:
        seen: what is known of each process, by its number.
        now: the time.
        patience_seconds: how long a process may be silent.
    """
    lost = {
        number: process
        for number, process in seen.items()
        if now - process.heard > patience_seconds / (1 if process.position.may_last else 2)
    }
    if not lost:
        return ""
    since = now - min(process.heard for process in lost.values())
    return (
        f"{names_of(lost)} not answered for {since:.0f} s (then it was {_where(lost)}): it is "
        "stopped, or its machine cannot be reached"
    )


def behind(seen: Mapping[int, Seen], now: float, patience_seconds: float) -> str:
    """A sentence about the processes that keep the others waiting; "" while all move on.

    Args:
        seen: what is known of each process, by its number.
        now: the time.
        patience_seconds: how long a process may be behind the others.
    """
    if any(process.position.may_last for process in seen.values()):
        return ""
    counts = [process.position.count for process in seen.values()]
    last = {n: p for n, p in seen.items() if p.position.count == min(counts)}
    since = now - max(process.moved for process in last.values())
    if min(counts) < max(counts):
        if since <= patience_seconds:
            return ""
        return (
            f"{names_of(last)} not moved on for {since:.0f} s ({_where(last)}), and the others "
            "wait for it"
        )
    longest = max(process.longest_seconds for process in seen.values())
    if min(counts) < LEARNT or since <= max(patience_seconds, LONGER * longest):
        return ""
    return (
        f"no process has moved on for {since:.0f} s ({_where(last)}): a collective does not end, "
        "or one process hangs beside it"
    )


def names_of(seen: Mapping[int, Seen]) -> str:
    """Processes by their numbers, with the verb: "process 1 has"; "" for none."""
    if len(seen) < 2:
        return "".join(f"process {number} has" for number in seen)
    return f"processes {', '.join(map(str, seen))} have"


def _where(seen: Mapping[int, Seen]) -> str:
    """What the first of some processes does."""
    return next(iter(seen.values())).position.where
