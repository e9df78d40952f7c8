"""Memory by meaning, over the schedule of a step: what is held when, and what the peak is made of.

From XLA's own buffer assignment and live ranges, of described GPUs as of those that are here. XLA's
own figure of the peak stands beside it; for CPUs that figure leaves temporaries out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jaxpar.core.errors import expect
from jaxpar.hlo.buffers import Buffer, Buffers, buffers
from jaxpar.hlo.executions import executions
from jaxpar.hlo.occupancy import Occupancy, live_at, occupancy, throughout
from jaxpar.hlo.parse import Module, bytes_of, parse
from jaxpar.measures.explain.held import PARTS, TEMPORARIES, Held
from jaxpar.measures.explain.meaning import line_among
from jaxpar.measures.explain.places import Places
from jaxpar.program.record import Program
from jaxpar.step.record import Step

POINTS = 200
"""So many steps of a schedule are told at most, the peak among them."""
LARGEST = 20
"""So many values at the peak are told by name."""


@dataclass(frozen=True)
class Live:
    """A value that is live at the peak.

    Attributes:
        part: of PARTS.
        bytes: of it.
        what: the path of its parameter, or the name of the operation that made it.
        module: that it belongs to; "" where it is not known.
        source: the person's line that made it; "" where it is not known.
        shape: as XLA writes it.
    """

    part: str
    bytes: int
    what: str
    module: str
    source: str
    shape: str


@dataclass(frozen=True)
class Turn:
    """A loop in the schedule: steps `begin` to `end` are run `times` times a step."""

    begin: int
    end: int
    times: int


@dataclass(frozen=True)
class StepMemory:
    """The memory of one device during a step.

    Attributes:
        parts: name in PARTS -> bytes at the peak.
        peak_bytes: their sum.
        peak_at: the step of the schedule with most, and of how many.
        xla_peak_bytes: XLA's own figure; None where it gives none.
        curve: (step of the schedule, bytes of each of PARTS), thinned.
        modules: module -> bytes at the peak.
        largest: values at the peak, most bytes first.
        loops: in the schedule, longest first.
        seconds: wall clock that it took to tell.
    """

    parts: dict[str, int]
    peak_bytes: int
    peak_at: tuple[int, int]
    xla_peak_bytes: int | None
    curve: tuple[tuple[int, tuple[int, ...]], ...]
    modules: dict[str, int]
    largest: tuple[Live, ...]
    loops: tuple[Turn, ...] = ()
    seconds: float = 0.0

    @property
    def difference_bytes(self) -> int | None:
        """This peak minus XLA's own."""
        return None if self.xla_peak_bytes is None else self.peak_bytes - self.xla_peak_bytes

    def record(self) -> dict[str, Any]:
        """It as one JSON-ready dict."""
        return {
            "parts": self.parts,
            "peak_bytes": self.peak_bytes,
            "xla_peak_bytes": self.xla_peak_bytes,
            "difference_bytes": self.difference_bytes,
            "peak_step": self.peak_at[0],
            "schedule_steps": self.peak_at[1],
            "peak_by_module": self.modules,
            "largest": [vars(one) for one in self.largest],
            "curve_parts": list(PARTS),
            "curve": [[step, *values] for step, values in self.curve],
            "loops": [vars(loop) for loop in self.loops],
        }


def step_memory(program: Program) -> StepMemory | None:
    """The memory of a program's update by meaning; None where XLA does not tell of it."""
    made = "jaxpar.compile_step(step, hardware=...) makes it"
    expect("step_memory's program", program, Program, made)
    stats, dumps = program.update.memory_analysis(), program.dumps
    if not dumps.buffers or not dumps.live_ranges:
        return None
    found = buffers(dumps.buffers, dumps.live_ranges)
    peak = getattr(stats, "peak_memory_in_bytes", 0) or None
    return memory_of(program.step, parse(program.text), found, peak)


def memory_of(step: Step, module: Module, found: Buffers, xla_peak_bytes: int | None) -> StepMemory:
    """The memory of a step's update by meaning.

    Args:
        step: whose update it is.
        module: as it runs.
        found: XLA's account of its memory.
        xla_peak_bytes: XLA's own figure.
    """
    started = time.perf_counter()
    places = Places(step)
    held = Held(module, places, found.schedule)
    taken = occupancy(found, len(PARTS), held.part)
    fixed = _throughout(held, found)
    at, peak = taken.peak
    parts = {name: taken.classes[n][at] + fixed[n] for n, name in enumerate(PARTS)}
    largest = sorted(_live(held, places, found, at), key=lambda one: -one.bytes)
    modules: dict[str, int] = {}
    for one in largest:
        modules[one.module or "unknown"] = modules.get(one.module or "unknown", 0) + one.bytes
    return StepMemory(
        parts=parts,
        peak_bytes=peak,
        peak_at=(at, len(found.schedule)),
        xla_peak_bytes=xla_peak_bytes,
        curve=_curve(taken, fixed, at),
        modules=dict(sorted(modules.items(), key=lambda item: -item[1])),
        largest=tuple(largest[:LARGEST]),
        loops=_loops(module, found),
        seconds=time.perf_counter() - started,
    )


def _throughout(held: Held, found: Buffers) -> list[int]:
    """Bytes of each of PARTS that are allocated throughout."""
    fixed = [0] * len(PARTS)
    for allocation in throughout(found):
        place = held.argument(allocation)
        known = place is not None and place.group in PARTS
        fixed[PARTS.index(place.group if known and place else TEMPORARIES)] += allocation.size
    return fixed


def _curve(
    taken: Occupancy, fixed: list[int], peak: int
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(step, bytes of each part) of some steps: of each stretch the one with most, and the peak."""
    totals = taken.totals
    stretch = -(-len(totals) // POINTS)
    steps = set()
    for begin in range(0, len(totals), stretch):
        steps.add(max(range(begin, min(begin + stretch, len(totals))), key=totals.__getitem__))
    return tuple(
        (step, tuple(row[step] + fix for row, fix in zip(taken.classes, fixed, strict=True)))
        for step in sorted(steps | {peak})
    )


def _live(held: Held, places: Places, found: Buffers, at: int) -> list[Live]:
    """Every value that is live at a step, arguments too."""
    live = [_told(held, places, buffer) for buffer in live_at(found, at)]
    for allocation in throughout(found):
        place = held.argument(allocation)
        group = place.group if place and place.group in PARTS else TEMPORARIES
        path = place.path if place else ""
        is_weight = path in places.step.layout.parameters
        module = places.module_of(path) if is_weight else ""
        name = (place.name if place else "") or "results and constants"
        live.append(Live(group, allocation.size, name, module, "", ""))
    return live


def _told(held: Held, places: Places, buffer: Buffer) -> Live:
    """What a value in memory is."""
    part, path = PARTS[held.part(buffer)], held.path(buffer)
    i, node = held.instruction(buffer.name), held.node(buffer)
    if i is None or node is None:
        return Live(part, buffer.size, buffer.name, "", "", "")
    nearest = path or held.looped(i) or held.ways.nearest(node)[0]
    shape = next((f"{d}{list(n)}" for d, n in i.shapes if bytes_of((d, n)) == buffer.size), "")
    return Live(
        part=part,
        bytes=buffer.size,
        what=places.called(path) if path else i.op_name.rpartition("/")[2] or i.opcode,
        module=places.module_of(nearest) if nearest else "",
        source=line_among(i.frames),
        shape=shape,
    )


def _loops(module: Module, found: Buffers) -> tuple[Turn, ...]:
    """The loops of a schedule: where their bodies are in it, and how often they turn."""
    at = {name: step for step, name in enumerate(found.schedule)}
    runs = executions(module)
    turns = []
    for computation in module.computations.values():
        for i in computation.instructions:
            if i.opcode == "while" and computation.name in runs:
                body = next(name for role, name in i.calls if role == "body")
                steps = [at[b.name] for b in module.computations[body].instructions
                         if b.name in at]  # fmt: skip
                if steps and body in runs:
                    turns.append(Turn(min(steps), max(steps), round(runs[body].times)))
    return tuple(sorted(turns, key=lambda turn: turn.begin - turn.end))
