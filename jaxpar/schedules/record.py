"""The Schedule record: a table of what every stage does at every tick, and what follows from it.

Pure numbers, known before anything is compiled: bubble fraction, microbatches in flight,
messages. A tick is one forward or one backward pass of one microbatch through one chunk of layers;
a backward pass may take longer, but stages wait only for the neighbour that they exchange with.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from jaxpar.core.errors import LayoutError, RequestError

MOST_PASSES = 1 << 18
"""Forward passes of a schedule, about a second's work: 64 stages of 4,096 microbatches."""


@dataclass(frozen=True)
class Work:
    """What one stage does in one tick.

    Attributes:
        forward: a forward pass, else a backward pass.
        microbatch: of which microbatch, from 0.
        chunk: through which of the stage's chunks of layers, from 0.
    """

    forward: bool
    microbatch: int
    chunk: int = 0


Order = Sequence[Work]
"""The work of one stage, in the order in which it is done."""


@dataclass(frozen=True)
class Schedule:
    """Who does what when.

    Attributes:
        name: as typed on the command line.
        stages, chunks, microbatches: K stages of V chunks each, and M microbatches. The layers are
            in K x V pieces, and piece i is chunk i // K of stage i % K.
        table: `table[tick][stage]`, None where the stage is idle.
        phases: where ticks change their kind, each compiled as a loop of its own: first ticks.
    """

    name: str
    stages: int
    microbatches: int
    chunks: int
    table: tuple[tuple[Work | None, ...], ...]
    phases: tuple[int, ...] = (0,)

    @property
    def ticks(self) -> int:
        """How many ticks one step takes."""
        return len(self.table)

    @property
    def pieces(self) -> int:
        """How many pieces the layers are in."""
        return self.stages * self.chunks

    @property
    def bubble_fraction(self) -> float:
        """The share of all stages' ticks in which there is nothing to do."""
        return sum(work is None for row in self.table for work in row) / (self.ticks * self.stages)

    @cached_property
    def ticks_of(self) -> dict[tuple[bool, int, int], int]:
        """(forward, microbatch, piece) -> the tick in which it is done."""
        return {
            (work.forward, work.microbatch, self.piece(stage, work)): tick
            for tick, row in enumerate(self.table)
            for stage, work in enumerate(row)
            if work is not None
        }

    def forward_only(self) -> "Schedule":
        """The same microbatches and pieces without backward passes, as an evaluation has them."""
        orders = [
            [work for row in self.table if (work := row[stage]) is not None and work.forward]
            for stage in range(self.stages)
        ]
        return as_soon_as_possible(
            self.name, orders, microbatches=self.microbatches, chunks=self.chunks
        )

    def piece(self, stage: int, work: Work) -> int:
        """Which piece of the layers a stage's work goes through."""
        return work.chunk * self.stages + stage

    def in_flight(self, stage: int) -> int:
        """The most microbatches at once that `stage` has done forward and not yet backward."""
        now = most = 0
        for row in self.table:
            if (work := row[stage]) is not None:
                now += 1 if work.forward else -1
                most = max(most, now)
        return most

    @property
    def peak_in_flight(self) -> int:
        """`in_flight` of the stage that has most; each is one microbatch through one chunk."""
        return max(self.in_flight(stage) for stage in range(self.stages))

    def sends(self) -> Iterator[tuple[int, int, int]]:
        """Every message as (tick after whose work it goes, from stage, to stage)."""
        for tick, row in enumerate(self.table):
            for stage, work in enumerate(row):
                if work is None:
                    continue
                piece = self.piece(stage, work)
                if work.forward and piece < self.pieces - 1:
                    yield tick, stage, (stage + 1) % self.stages
                elif not work.forward and piece > 0:
                    yield tick, stage, (stage - 1) % self.stages

    @property
    def messages(self) -> int:
        """Messages that the busiest stage sends in a step, each one microbatch's activation."""
        return max(Counter(source for _, source, _ in self.sends()).values(), default=0)

    def picture(self, ticks: slice = slice(None)) -> str:
        """The table, or some ticks of it, as text with a line a stage.

        A forward pass is the number of its microbatch, a backward pass the same in brackets.
        """
        wide = len(str(self.microbatches - 1)) + 2

        def cell(work: Work | None) -> str:
            if work is None:
                return "." * wide
            number = f"{work.microbatch}"
            return (f" {number} " if work.forward else f"[{number}]").rjust(wide)

        return "\n".join(
            f"stage {stage} " + "".join(cell(row[stage]) for row in self.table[ticks])
            for stage in range(self.stages)
        )


def check_counts(name: str, stages: int, microbatches: int, chunks: int) -> None:
    """Refuse counts below one, and so many passes that to put them in order would take minutes."""
    counts = (("stages", stages), ("microbatches", microbatches), ("chunks", chunks))
    for what, count in counts:
        if count < 1:
            raise RequestError(f"schedule '{name}': {what}={count}: use 1 or more")
    if (passes := stages * microbatches * chunks) > MOST_PASSES:
        each = ", ".join(f"{what}={count}" for what, count in counts)
        raise LayoutError(
            f"schedule '{name}' of {each} has {passes:,} forward passes, and there can be "
            f"{MOST_PASSES:,}: use fewer"
        )


def one_chunk(name: str, chunks: int) -> None:
    """Refuse several chunks a stage in a schedule that knows one."""
    if chunks != 1:
        raise LayoutError(
            f"schedule '{name}' runs one chunk of layers a stage, and chunks={chunks} was asked "
            "for: leave chunks at 1, or use schedule=interleaved"
        )


def as_soon_as_possible(
    name: str,
    orders: Sequence[Order],
    *,
    microbatches: int,
    chunks: int,
) -> Schedule:
    """The table in which every stage keeps to its order and starts each work as early as it can.

    Args:
        name: of the schedule.
        orders: for every stage its work in order.
        microbatches, chunks: as in `Schedule`.
    """
    stages = len(orders)
    last = stages * chunks - 1
    done: dict[tuple[bool, int, int], int] = {}
    at = [0] * stages
    table = []
    while any(at[s] < len(orders[s]) for s in range(stages)):
        tick, row = len(table), []
        for stage in range(stages):
            work = orders[stage][at[stage]] if at[stage] < len(orders[stage]) else None
            if work is not None:
                piece = work.chunk * stages + stage
                needs = _needs(work, piece, last)
                ready = all(done.get(need, tick) < tick for need in needs)
                work = work if ready else None
            row.append(work)
        for stage, work in enumerate(row):
            if work is not None:
                at[stage] += 1
                done[work.forward, work.microbatch, work.chunk * stages + stage] = tick
        assert any(row), f"{name}: stages wait for one another for ever"
        table.append(tuple(row))
    return Schedule(name, stages, microbatches, chunks, tuple(table))


def _needs(work: Work, piece: int, last: int) -> list[tuple[bool, int, int]]:
    """The (forward, microbatch, piece) that have to be done before this work."""
    if work.forward:
        return [(True, work.microbatch, piece - 1)] if piece > 0 else []
    after = [(False, work.microbatch, piece + 1)] if piece < last else []
    return [*after, (True, work.microbatch, piece)]
