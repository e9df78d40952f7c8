"""XLA's own account of memory, read: which value is where in which allocation, from when to when.

`buffers(assignment, live_ranges)` reads the two texts that XLA writes of a compiled program when it
is told to (`jaxpar.program.dumps`). Text in, frozen records out; a text that is not understood
raises ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ALLOCATION = re.compile(r"allocation (\d{1,18}): size (\d{1,18})(.*)$")
_VALUE = re.compile(
    r" value: <\d{1,18} (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> "
    r"\(size=(\d{1,18}),offset=(\d{1,18})\)"
)
_PARAMETER = re.compile(r"\bparameter (\d{1,18})")
_STEP = re.compile(r"\s+(\d{1,18}):(\S+)\s*$")
_LIVE = re.compile(r"\s+(\S+?)(\{[\d,]*\}):(\d{1,18})-(\d{1,18})\s*$")


@dataclass(frozen=True)
class Buffer:
    """Bytes of an allocation that a value has for some time.

    Attributes:
        name: of the instruction whose result it is.
        index: of the element of a tuple, "{}" for a whole result.
        size, offset: in bytes, in the allocation.
        begin, end: the first and the last step of the schedule in which it is live.
    """

    name: str
    index: str
    size: int
    offset: int
    begin: int
    end: int


@dataclass(frozen=True)
class Allocation:
    """Memory that is allocated for the whole program.

    Attributes:
        number: XLA's.
        size: in bytes.
        parameter: the number of the program's argument that it holds; -1 for none.
        is_shared: whether values take turns in it, as they do in the temporaries' one.
        lives_out: whether it holds a result.
        buffers: the values in it.
    """

    number: int
    size: int
    parameter: int
    is_shared: bool
    lives_out: bool
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Buffers:
    """The memory of a compiled program on one device.

    Attributes:
        allocations: all but those of single threads.
        schedule: the names of the instructions in order, a loop's body once, before the loop.
    """

    allocations: tuple[Allocation, ...]
    schedule: tuple[str, ...]


def buffers(assignment: str, live_ranges: str) -> Buffers:
    """The memory that two texts tell of.

    Args:
        assignment: XLA's buffer assignment.
        live_ranges: XLA's schedule and live ranges.

    Raises:
        ValueError: one of them is no such text, or they are of different programs.
    """
    schedule, live = _live(live_ranges)
    if not schedule:
        raise ValueError("no schedule in the text of live ranges")
    last = len(schedule)
    found = []
    for head, lines in _allocations(assignment):
        number, size, attributes = int(head[1]), int(head[2]), head[3]
        if "thread-local" in attributes:
            continue
        held = []
        for value in lines:
            name, index = value[1], value[2] or "{}"
            begin, end = live.get((name, index), (0, last))
            held.append(Buffer(name, index, int(value[3]), int(value[4]), begin, end))
        parameter = _PARAMETER.search(attributes)
        found.append(
            Allocation(
                number,
                size,
                int(parameter[1]) if parameter else -1,
                "preallocated-temp" in attributes,
                "maybe-live-out" in attributes,
                tuple(held),
            )
        )
    if not found:
        raise ValueError("no allocation in the text of a buffer assignment")
    return Buffers(tuple(found), schedule)


def _allocations(text: str) -> Iterator[tuple[re.Match, list[re.Match]]]:
    """(first line, lines of values) of each allocation."""
    head: re.Match | None = None
    lines: list[re.Match] = []
    for line in text.split("\n"):
        if match := _ALLOCATION.match(line):
            if head:
                yield head, lines
            head, lines = match, []
        elif match := _VALUE.match(line):
            lines.append(match)
        elif line.startswith(("Memory Space", "Total bytes", "Used values")):
            break
    if head:
        yield head, lines


def _live(text: str) -> tuple[tuple[str, ...], dict[tuple[str, str], tuple[int, int]]]:
    """(the schedule, (name, index) -> first and last step) of a text of live ranges."""
    schedule: list[str] = []
    live: dict[tuple[str, str], tuple[int, int]] = {}
    section = ""
    for line in text.split("\n"):
        if line.rstrip().endswith(("InstructionSequence:", "BufferLiveRange:")):
            section = line.strip()
        elif "(peak)" in line:
            break
        elif section == "InstructionSequence:" and (step := _STEP.match(line)):
            schedule.append(step[2])
        elif section == "BufferLiveRange:" and (range_ := _LIVE.match(line)):
            live[range_[1], range_[2]] = int(range_[3]), int(range_[4])
    return tuple(schedule), live
