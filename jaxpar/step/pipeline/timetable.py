"""A schedule as index tables: which slot of which buffer each stage reads and writes at each tick.

Pure numpy. Slots are given out like seats: one is free again once what sat in it has been used, so
that there are as many as the schedule has in flight at once, and no more.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jaxpar.schedules.phases import fit_one
from jaxpar.schedules.record import Schedule

IDLE, FORWARD, BACKWARD = range(3)
NOWHERE = -1
"""The slot of what does not arrive, or need not be kept."""

Pairs = tuple[tuple[int, int], ...]
"""(from stage, to stage) of every message of one exchange."""


@dataclass(frozen=True)
class Exchange:
    """The messages that may follow one tick.

    `onward` carries activations to the next piece, `back` gradients to the one before. Where no
    stage could receive both at once the two are one and the same permute.
    """

    onward: Pairs
    back: Pairs

    @property
    def permutes(self) -> tuple[Pairs, ...]:
        """The source-target pairs of its permutes, each once."""
        return tuple(pairs for pairs in dict.fromkeys((self.onward, self.back)) if pairs)


@dataclass(frozen=True)
class Loop:
    """Ticks `first` up to `first + turns * len(exchanges)`, one exchange after each, over again."""

    first: int
    turns: int
    exchanges: tuple[Exchange, ...]
    kinds: frozenset[int]
    counts: tuple["Counts", ...]


@dataclass(frozen=True)
class Counts:
    """How much work a place in a loop's turn sees in one step, over all stages and turns.

    `of` is by kind of work; `first` and `last` are those of it on the first and last piece, also by
    kind.
    """

    of: dict[int, int]
    first: dict[int, int]
    last: dict[int, int]


@dataclass(frozen=True)
class Timetable:
    """What every stage does at every tick; arrays are (ticks, stages) of int32.

    Attributes:
        kind: idle, forward or backward.
        microbatch, chunk: of what.
        first, last: 1 where the work is on the first or the last piece of the layers.
        take_x, take_dy: the slot of the activation or gradient that the work starts from.
        land_x, land_dy: the slot for what arrives after the tick, or nowhere.
        keep: the slot for what forward keeps for backward.
        keep_y: the slot where the last piece's result waits for its loss, or nowhere.
        slots: how many slots each buffer has, by the name of its table.
        loops: the ticks, grouped into loops whose turns are alike.
    """

    kind: np.ndarray
    microbatch: np.ndarray
    chunk: np.ndarray
    first: np.ndarray
    last: np.ndarray
    take_x: np.ndarray
    take_dy: np.ndarray
    land_x: np.ndarray
    land_dy: np.ndarray
    keep: np.ndarray
    keep_y: np.ndarray
    slots: dict[str, int]
    loops: tuple[Loop, ...]

    @property
    def permutes(self) -> int:
        """How many permutes one step makes, idle ticks included."""
        return sum(
            loop.turns * sum(len(exchange.permutes) for exchange in loop.exchanges)
            for loop in self.loops
        )

    def columns(self) -> dict[str, np.ndarray]:
        """The tables by name, for a device to pick its own column of."""
        names = "kind microbatch chunk first last take_x take_dy land_x land_dy keep keep_y".split()
        return {name: getattr(self, name) for name in names}


def timetable(schedule: Schedule) -> Timetable:
    """The index tables of a schedule."""
    tables = {
        name: np.full((schedule.ticks, schedule.stages), NOWHERE, np.int32)
        for name in ("take_x", "take_dy", "land_x", "land_dy", "keep", "keep_y")
    }
    slots = {}
    for name, spans in _spans(schedule).items():
        slots[name] = _seat(spans, tables, schedule)
    rows = [[work for work in row] for row in schedule.table]
    pieces = np.array(
        [
            [NOWHERE if w is None else schedule.piece(s, w) for s, w in enumerate(row)]
            for row in rows
        ]
    )

    def of(pick, otherwise: int = 0) -> np.ndarray:
        return np.array([[otherwise if w is None else pick(w) for w in row] for row in rows], "i4")

    return Timetable(
        kind=of(lambda w: FORWARD if w.forward else BACKWARD, IDLE),
        microbatch=of(lambda w: w.microbatch),
        chunk=of(lambda w: w.chunk),
        first=(pieces == 0).astype("i4"),
        last=(pieces == schedule.pieces - 1).astype("i4"),
        **tables,
        slots=slots,
        loops=_loops(schedule),
    )


@dataclass(frozen=True)
class _Span:
    """Something that sits in a buffer of `stage` from the end of tick `start` to tick `end`."""

    stage: int
    start: int
    end: int
    written: str
    read: str


def _spans(schedule: Schedule) -> dict[str, list[_Span]]:
    """What each buffer has to keep, where and how long."""
    found: dict[str, list[_Span]] = {"x": [], "dy": [], "keep": [], "keep_y": []}
    ticks, last = schedule.ticks_of, schedule.pieces - 1
    for (forward, microbatch, piece), tick in ticks.items():
        stage = piece % schedule.stages
        if forward and piece > 0:
            sent = ticks[True, microbatch, piece - 1]
            found["x"].append(_Span(stage, sent, tick, "land_x", "take_x"))
        if not forward and piece < last:
            sent = ticks[False, microbatch, piece + 1]
            found["dy"].append(_Span(stage, sent, tick, "land_dy", "take_dy"))
        if not forward:
            begun = ticks[True, microbatch, piece]
            found["keep"].append(_Span(stage, begun, tick, "keep", "keep"))
            if piece == last:
                found["keep_y"].append(_Span(stage, begun, tick, "keep_y", "keep_y"))
    return found


def _seat(spans: list[_Span], tables: dict[str, np.ndarray], schedule: Schedule) -> int:
    """Give every span a slot, write it into the tables; returns how many slots there are."""
    free_from: list[dict[int, int]] = [{} for _ in range(schedule.stages)]
    for span in sorted(spans, key=lambda s: s.start):
        seats = free_from[span.stage]
        # What lands goes in at the end of a tick, when that tick's work has taken its own out;
        # what forward keeps is written while the tick runs, as what backward takes is read.
        lands = span.written != span.read
        slot = next(
            (s for s, end in seats.items() if end <= span.start - (0 if lands else 1)), len(seats)
        )
        seats[slot] = span.end
        tables[span.written][span.start, span.stage] = slot
        tables[span.read][span.end, span.stage] = slot
    return max((len(seats) for seats in free_from), default=0)


def _loops(schedule: Schedule) -> tuple[Loop, ...]:
    """One loop for every phase of a schedule."""
    starts = [*schedule.phases, schedule.ticks]
    return tuple(
        _loop(schedule, first, end) for first, end in zip(starts, starts[1:], strict=False)
    )


def _loop(schedule: Schedule, first: int, end: int) -> Loop:
    """The ticks from `first` to `end` as turns of one tick or, if that saves permutes, of two."""
    works = [w for row in schedule.table[first:end] for w in row]
    kinds = frozenset(IDLE if w is None else FORWARD if w.forward else BACKWARD for w in works)
    tries = [p for p in (1, 2) if (end - first) % p == 0]
    options = [
        tuple(_exchange(schedule, range(first + i, end, p)) for i in range(p)) for p in tries
    ]
    exchanges = min(options, key=lambda e: sum(len(x.permutes) for x in e) / len(e))
    width = len(exchanges)
    counts = tuple(_counts(schedule, range(first + i, end, width)) for i in range(width))
    return Loop(first, (end - first) // width, exchanges, kinds, counts)


def _counts(schedule: Schedule, ticks: Iterable[int]) -> Counts:
    """How often each kind of work is done in these ticks, by all stages together."""
    of, first, last = Counter(), Counter(), Counter()
    for tick in ticks:
        for stage, work in enumerate(schedule.table[tick]):
            kind = IDLE if work is None else FORWARD if work.forward else BACKWARD
            of[kind] += 1
            if work is not None:
                first[kind] += schedule.piece(stage, work) == 0
                last[kind] += schedule.piece(stage, work) == schedule.pieces - 1
    return Counts(dict(of), dict(first), dict(last))


def _exchange(schedule: Schedule, ticks: Iterable[int]) -> Exchange:
    """One exchange that carries the messages of any of these ticks."""
    ticks = set(ticks)
    onward: set[tuple[int, int]] = set()
    back: set[tuple[int, int]] = set()
    for tick, source, target in schedule.sends():
        if tick in ticks:
            work = schedule.table[tick][source]
            assert work is not None, (tick, source)
            (onward if work.forward else back).add((source, target))
    if onward and back and fit_one(frozenset(onward), frozenset(back)):
        onward = back = onward | back
    return Exchange(tuple(sorted(onward)), tuple(sorted(back)))
