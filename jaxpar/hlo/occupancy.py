"""How much memory is taken at each step of a schedule, and by which values.

Values that share their bytes, such as a loop's carry and what is made of it in place, count once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxpar.hlo.buffers import Allocation, Buffer, Buffers

Class = Callable[[Buffer], int]
"""A value -> the number of the class that its bytes count in; of several the lowest."""


@dataclass(frozen=True)
class Occupancy:
    """Bytes taken over a schedule.

    Attributes:
        classes: for each class its bytes at each step, without what is allocated throughout.
        throughout: bytes of allocations that no values take turns in: arguments, results.
    """

    classes: tuple[tuple[int, ...], ...]
    throughout: int

    @property
    def totals(self) -> list[int]:
        """Bytes taken at each step."""
        return [self.throughout + sum(column) for column in zip(*self.classes, strict=True)]

    @property
    def peak(self) -> tuple[int, int]:
        """(the first step at which most is taken, the bytes)."""
        totals = self.totals
        most = max(totals)
        return totals.index(most), most


def occupancy(found: Buffers, count: int, class_of: Class) -> Occupancy:
    """What is taken at each step.

    Args:
        found: the memory of a program.
        count: how many classes there are.
        class_of: tells the class of a value.
    """
    steps = len(found.schedule) + 1
    changes = [[0] * (steps + 1) for _ in range(count)]
    for allocation in found.allocations:
        if allocation.is_shared:
            for slot in slots(allocation.buffers):
                for begin, end, of_class in _turns(slot, class_of):
                    changes[of_class][begin] += slot[0].size
                    changes[of_class][min(end, steps - 1) + 1] -= slot[0].size
    classes = []
    for row in changes:
        taken, level = [], 0
        for change in row[:steps]:
            level += change
            taken.append(level)
        classes.append(tuple(taken))
    return Occupancy(tuple(classes), sum(a.size for a in throughout(found)))


def throughout(found: Buffers) -> list[Allocation]:
    """The allocations that no values take turns in."""
    return [allocation for allocation in found.allocations if not allocation.is_shared]


def slots(held: Sequence[Buffer]) -> list[list[Buffer]]:
    """The values of an allocation by the bytes that they have, those of one slot in order."""
    by_place: dict[tuple[int, int], list[Buffer]] = {}
    for one in held:
        by_place.setdefault((one.offset, one.size), []).append(one)
    return [sorted(slot, key=lambda b: (b.begin, b.end)) for slot in by_place.values()]


def _turns(slot: list[Buffer], class_of: Class) -> list[tuple[int, int, int]]:
    """(first step, last step, class) of the times at which a slot is taken, none twice."""
    edges = sorted({b.begin for b in slot} | {b.end + 1 for b in slot})
    classes = {id(b): class_of(b) for b in slot}
    turns: list[tuple[int, int, int]] = []
    active: list[Buffer] = []
    rest = list(slot)
    for begin, after in zip(edges, edges[1:], strict=False):
        active = [b for b in active if b.end >= begin]
        while rest and rest[0].begin <= begin:
            active.append(rest.pop(0))
        active = [b for b in active if b.end >= begin]
        if active:
            turns.append((begin, after - 1, min(classes[id(b)] for b in active)))
    return turns


def live_at(found: Buffers, step: int) -> list[Buffer]:
    """The values that have bytes of their own at a step, one a slot, largest first."""
    live = []
    for allocation in found.allocations:
        if allocation.is_shared:
            for slot in slots(allocation.buffers):
                here = [b for b in slot if b.begin <= step <= b.end]
                live += here[:1]
    return sorted(live, key=lambda b: -b.size)
