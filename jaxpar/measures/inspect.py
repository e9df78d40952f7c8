"""Inspect: a compiled program's collectives, memory and work, and whether it is what was asked for.

Read from the program that XLA made for the hardware asked for, loops counted as often as they run;
work is counted in the traced loss. No array is allocated.
"""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from jaxpar.core.errors import expect, one_line
from jaxpar.core.figures import bytes_text
from jaxpar.core.mesh import sizes_of
from jaxpar.hardware.record import Hardware
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import runs_in_stages, schedule_for
from jaxpar.measures.attention import attention_of
from jaxpar.measures.bounds import Bounds, bounds
from jaxpar.measures.device_memory import DeviceMemory, device_memory
from jaxpar.measures.dims import dims_of_layout
from jaxpar.measures.faults import early_synchronisations, traffic_faults
from jaxpar.measures.finding import Finding
from jaxpar.measures.lint import lint
from jaxpar.measures.record import Make, Measure
from jaxpar.measures.replicated import Replicated, replicated
from jaxpar.measures.residual import Residual, residual_of
from jaxpar.measures.simulated import differences
from jaxpar.measures.traffic import TrafficRow, as_records, traffic
from jaxpar.measures.work import Work, work
from jaxpar.models.pieces import weight_named
from jaxpar.program.record import Program
from jaxpar.report.notebook import notebook_html
from jaxpar.schedules.record import Schedule
from jaxpar.step.modes.record import Island
from jaxpar.step.pipeline.timetable import timetable
from jaxpar.step.record import Step


@dataclass(frozen=True)
class Inspection:
    """What a program was found to do.

    Attributes:
        step: what was compiled.
        target: what it was compiled for.
        collectives: of one update, by kind and mesh axes, most bytes first.
        averaging: as `collectives`, of one synchronisation of replicas of local SGD; else empty.
        device_memory: what it takes of one device; None where a backend gives no account.
        replicated: arrays of the optimizer and the model that every device has whole although
            others like them are sharded.
        faults: unexpected and missing collectives, a sentence each.
        lint: where the program is not what the layout asked for.
        islands: operations that explicit mode left to XLA.
        trace_seconds, compile_seconds: how long it took to make; short if JAX had kept it.
        is_strict: whether what lint finds is an error, or else a warning.
        schedule: which stage does what when, where layers run in stages.
        attention: how attention is computed, in a sentence, or "".
        residual: what is kept for backward between blocks, where devices have it alike.
        differences: what simulated devices show otherwise than GPUs, in a sentence, or "".
    """

    step: Step
    target: Hardware
    collectives: tuple[TrafficRow, ...]
    device_memory: DeviceMemory | None
    faults: tuple[str, ...]
    lint: tuple[Finding, ...] = ()
    replicated: tuple[Replicated, ...] = ()
    is_strict: bool = True
    islands: tuple[Island, ...] = ()
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    averaging: tuple[TrafficRow, ...] = ()
    schedule: Schedule | None = None
    attention: str = ""
    residual: Residual | None = None
    differences: str = ""

    def __repr__(self) -> str:
        memory = self.device_memory
        needs = "" if memory is None else f", {bytes_text(memory.total_bytes)} of memory"
        kinds = len(self.collectives) + len(self.averaging)
        return one_line(
            f"<Inspection {self.layout.title} on {self.hardware}: {kinds} kinds of collectives, "
            f"{bytes_text(self.bytes_per_step)} per device per step{needs}, "
            f"{'ok' if self.ok else 'not ok'}>"
        )

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "inspect", **self.record()})

    @property
    def layout(self) -> Layout:
        """What was laid out."""
        return self.step.layout

    @property
    def hardware(self) -> str:
        """Name of what it was compiled for."""
        return self.target.name

    @property
    def mode(self) -> str:
        """The mode of the step."""
        return self.step.mode

    @property
    def memory(self) -> dict[str, Any]:
        """What it takes of one device, by name, in bytes; empty where it is not known."""
        return {} if self.device_memory is None else self.device_memory.record()

    @cached_property
    def work(self) -> Work:
        """What a step computes; counted when it is first asked for."""
        return work(self.step)

    @property
    def bounds(self) -> Bounds | None:
        """How long a step takes at least; None for hardware of which no rates are published."""
        return bounds(self.work, self._rows(), self.target)

    def _rows(self) -> tuple[tuple[TrafficRow, float], ...]:
        """Every row of collectives, with how many of them a step has."""
        averaging = self.layout.strategy.averaging
        share = 1 / averaging.every if averaging and averaging.every else 0.0
        return (*((row, 1.0) for row in self.collectives), *((r, share) for r in self.averaging))

    @property
    def bytes_per_step(self) -> float:
        """Bytes per device in the collectives of a step, those of a synchronisation shared out.

        It counts for each of the updates that it comes after, and for none at the end of training.
        """
        return sum(row.bytes * times for row, times in self._rows())

    def bytes_by_axes(self) -> dict[str, dict[str, float]]:
        """Bytes per device per step by mesh axes, "data x model", within nodes and between them.

        Where nodes are not known, as on simulated devices, all are "anywhere".
        """
        where = {None: "anywhere", False: "inside_nodes", True: "between_nodes"}
        found: dict[str, dict[str, float]] = {}
        for row, times in self._rows():
            sums = found.setdefault(" x ".join(row.axes), {})
            place = where[row.between_nodes]
            sums[place] = sums.get(place, 0.0) + row.bytes * times
        return found

    @property
    def ok(self) -> bool:
        """Whether collectives are those the strategy states, and a strict lint finds nothing.

        Whether it fits is another question, and `device_memory` answers it.
        """
        return not self.faults and not (self.errors and self.is_strict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are faults."""
        return tuple(finding for finding in self.lint if finding.is_error)

    def record(self) -> dict:
        """The inspection as one JSON-ready dict."""
        layout = self.layout
        averaging = layout.strategy.averaging if self.averaging else None
        return {
            "ok": self.ok,
            **layout.record(),
            "hardware": self.hardware,
            "mode": self.mode,
            "collectives": as_records(self.collectives),
            "averaging_collectives": as_records(self.averaging),
            "averaging_every": averaging.every if averaging else None,
            "bytes_per_step": self.bytes_per_step,
            "bytes_per_step_by_axes": self.bytes_by_axes(),
            "attention": self.attention or None,
            "residual": None if self.residual is None else asdict(self.residual),
            "collectives_differ": self.differences or None,
            "work": self.work.record(),
            "bounds": None if (bound := self.bounds) is None else bound.record(),
            "memory": self.memory,
            "replicated": [asdict(one) for one in self.replicated],
            "schedule": None if self.schedule is None else _table(self.schedule),
            "dims": dims_of_layout(layout),
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "islands": [asdict(island) for island in self.islands],
            "findings": [finding.record() for finding in self.lint],
            "faults": list(self.faults),
        }


def inspect(program: Program, *, is_strict: bool = True) -> Inspection:
    """Read a compiled program; nothing is run.

    Args:
        program: compiled for anything.
        is_strict: whether what `lint` finds makes the inspection not ok, or is a warning.
    """
    expect(
        "inspect's program", program, Program, "jaxpar.compile_step(step, hardware=...) makes it"
    )
    step, hardware = program.step, program.hardware
    layout, sizes = step.layout, sizes_of(step.layout.mesh)
    node = hardware.devices_per_node
    called = partial(weight_named, cuts=layout.model.cuts)
    rows = traffic(program.text, sizes, node, called)
    averaging = ()
    if program.average is not None:
        averaging = traffic(program.average.as_text(), sizes, node, called)
    return Inspection(
        step=step,
        target=hardware,
        collectives=rows,
        device_memory=device_memory(program),
        faults=traffic_faults(layout, rows + averaging, step.mode)
        + early_synchronisations(layout, rows),
        lint=lint(program),
        replicated=replicated(step),
        is_strict=is_strict,
        islands=step.traced.islands,
        trace_seconds=step.traced.seconds,
        compile_seconds=program.made.compile_seconds,
        averaging=averaging,
        schedule=schedule_for(layout.strategy, layout.mesh, step.microbatches)
        if runs_in_stages(layout.strategy, layout.mesh)
        else None,
        attention=attention_of(program),
        residual=residual_of(step),
        differences=differences(program, rows),
    )


def _table(schedule: Schedule) -> dict:
    """A schedule and what follows from it, as one JSON-ready dict."""
    return {
        "name": schedule.name,
        "stages": schedule.stages,
        "chunks": schedule.chunks,
        "microbatches": schedule.microbatches,
        "ticks": schedule.ticks,
        "bubble_fraction": schedule.bubble_fraction,
        "peak_in_flight": schedule.peak_in_flight,
        "messages": schedule.messages,
        "permutes": timetable(schedule).permutes,
        "table": schedule.picture().splitlines(),
    }


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """The record of a program's inspection."""
    del make
    return inspect(program).record()


measure = Measure(_taken, runs=False)
