"""Inspect: a compiled program's collectives and memory, and whether its strategy states them.

Read from the program that XLA made for the hardware asked for, loops counted as often as they run.
No array is allocated.
"""

from dataclasses import asdict, dataclass
from typing import Any

from jaxpar.core.errors import expect
from jaxpar.core.mesh import axes_of, sizes_of
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import runs_in_stages, schedule_for
from jaxpar.measures.dims import dims_of_layout
from jaxpar.measures.lint import Finding, lint
from jaxpar.measures.record import Make, Measure
from jaxpar.measures.traffic import TrafficRow, as_records, traffic
from jaxpar.program.record import Program
from jaxpar.schedules.record import Schedule
from jaxpar.step.modes.record import Island
from jaxpar.step.pipeline.timetable import timetable
from jaxpar.strategies.record import REPLICA


@dataclass(frozen=True)
class Inspection:
    """What a program was found to do.

    Attributes:
        layout: what was laid out.
        hardware: name of what it was compiled for.
        collectives: of one update, by kind and mesh axes, most bytes first.
        averaging: as `collectives`, of one synchronisation of replicas of local SGD; else empty.
        memory: XLA's own totals for one device, by name, in bytes.
        faults: unexpected and missing collectives, a sentence each.
        lint: where the program is not what the layout asked for.
        islands: operations that explicit mode left to XLA.
        trace_seconds, compile_seconds: how long it took to make; short if JAX had kept it.
        is_strict: whether what lint finds is an error, or else a warning.
        schedule: which stage does what when, where layers run in stages.
    """

    layout: Layout
    hardware: str
    mode: str
    collectives: tuple[TrafficRow, ...]
    memory: dict[str, int]
    faults: tuple[str, ...]
    lint: tuple[Finding, ...] = ()
    is_strict: bool = True
    islands: tuple[Island, ...] = ()
    trace_seconds: float = 0.0
    compile_seconds: float = 0.0
    averaging: tuple[TrafficRow, ...] = ()
    schedule: Schedule | None = None

    @property
    def bytes_per_step(self) -> float:
        """Bytes per device in the collectives of a step, those of a synchronisation shared out.

        It counts for each of the updates that it comes after, and for none at the end of training.
        """
        averaging = self.layout.strategy.averaging
        every = averaging.every if averaging else 0
        rare = sum(row.bytes for row in self.averaging)
        return sum(row.bytes for row in self.collectives) + (rare / every if every else 0)

    @property
    def ok(self) -> bool:
        """Whether collectives are those the strategy states, and a strict lint finds nothing."""
        return not self.faults and not (self.lint and self.is_strict)

    def record(self) -> dict:
        """The inspection as one JSON-ready dict."""
        layout, mesh = self.layout, self.layout.mesh
        averaging = layout.strategy.averaging if self.averaging else None
        return {
            "ok": self.ok,
            "model": layout.model.name,
            "strategy": layout.strategy.name,
            "mesh": sizes_of(mesh),
            "devices": mesh.devices,
            "hardware": self.hardware,
            "mode": self.mode,
            "batch": layout.model.batch_size,
            "parameters": sum(a.size for a in layout.parameters.values()),
            "parameter_bytes": layout.parameter_bytes,
            "parameter_bytes_per_device": layout.parameter_device_bytes,
            "collectives": as_records(self.collectives),
            "averaging_collectives": as_records(self.averaging),
            "averaging_every": averaging.every if averaging else None,
            "bytes_per_step": self.bytes_per_step,
            "memory": self.memory,
            "schedule": None if self.schedule is None else _table(self.schedule),
            "arrays": [
                {
                    "path": a.path,
                    "shape": list(a.shape),
                    "dims": list(a.dims),
                    "spec": [list(axes_of(entry)) for entry in a.stored],
                    "bytes": a.whole_bytes,
                    "bytes_per_device": a.device_bytes(mesh),
                }
                for group in (layout.parameters, layout.state)
                for a in group.values()
            ],
            "dims": dims_of_layout(layout),
            "notes": list(layout.notes),
            "trace_seconds": self.trace_seconds,
            "compile_seconds": self.compile_seconds,
            "islands": [asdict(island) for island in self.islands],
            "lint": [asdict(finding) for finding in self.lint],
            "faults": list(self.faults),
        }


def inspect(program: Program, *, is_strict: bool = True) -> Inspection:
    """Read a compiled program; nothing is run.

    Args:
        program: compiled for anything.
        islands: operations that explicit mode left to XLA.
        trace_seconds, compile_seconds: how long it took to make; short if JAX had kept it.
        is_strict: whether what `lint` finds makes the inspection not ok, or is a warning.
    """
    expect(
        "inspect's program", program, Program, "jaxpar.compile_step(step, hardware=...) makes it"
    )
    layout = program.step.layout
    sizes = sizes_of(layout.mesh)
    rows = traffic(program.text, sizes)
    averaging = () if program.average is None else traffic(program.average.as_text(), sizes)
    return Inspection(
        layout=layout,
        hardware=program.hardware.name,
        mode=program.step.mode,
        collectives=rows,
        memory=_memory(program),
        faults=traffic_faults(layout, rows + averaging) + _between_synchronisations(layout, rows),
        lint=lint(program),
        is_strict=is_strict,
        islands=program.step.traced.islands,
        trace_seconds=program.step.traced.seconds,
        compile_seconds=program.made.compile_seconds,
        averaging=averaging,
        schedule=schedule_for(layout.strategy, layout.mesh, program.step.microbatches)
        if runs_in_stages(layout.strategy, layout.mesh)
        else None,
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


def traffic_faults(layout: Layout, rows: tuple[TrafficRow, ...]) -> tuple[str, ...]:
    """Collectives in `rows` that the strategy never causes, and those it must; a sentence each."""
    strategy, mesh = layout.strategy, layout.mesh
    faults = []
    for axis in mesh.axes:
        if mesh.size(axis) == 1:
            continue
        found = {row.kind for row in rows if axis in row.axes}
        for row in rows:
            if axis in row.axes and row.kind in strategy.never.get(axis, ()):
                where = f", from {row.sources[0]}" if row.sources else ""
                mixing = (
                    ", or the loss takes rows of the whole batch together there"
                    if layout.model.named and axis in layout.row_axes
                    else ""
                )
                faults.append(
                    f"unexpected collective: strategy '{strategy.name}' never causes {row.kind} "
                    f"over axis '{axis}', and the program does {row.count} per step, "
                    f"{row.bytes:,} bytes per device{where}: an array is not sharded as its use "
                    f"needs it{mixing}"
                )
        for kind in sorted(strategy.must.get(axis, ())):
            if kind not in found and _uses(layout, axis, kind):
                faults.append(
                    f"missing collective: strategy '{strategy.name}' must cause {kind} over axis "
                    f"'{axis}', and the program does none: the arrays it should move are not "
                    "sharded over that axis"
                )
    return tuple(faults)


def _between_synchronisations(layout: Layout, rows: tuple[TrafficRow, ...]) -> tuple[str, ...]:
    """Collectives of an update over the axis of replicas that only synchronise now and then."""
    if layout.strategy.averaging is None:
        return ()
    return tuple(
        f"unexpected collective: strategy '{layout.strategy.name}' has none over axis '{REPLICA}' "
        f"until replicas synchronise, and an update does {row.count} {row.kind} per step, "
        f"{row.bytes:,} bytes per device: something of one replica is used by another"
        for row in rows
        if REPLICA in row.axes
    )


def _uses(layout: Layout, axis: str, kind: str) -> bool:
    """Whether anything of this model is sharded over `axis`, so that `kind` can be expected."""
    between = {axis for axes in layout.strategy.between.values() for axis in axes}
    specs = [a.stored for a in layout.parameters.values()]
    if kind == "all-gather" and axis in between:
        return True
    if kind in ("all-reduce", "all-to-all", "collective-permute"):
        specs += list(layout.batch.values())
    if kind == "all-gather":
        specs = [
            a.optimizer_state for a in layout.parameters.values() if a.optimizer_state != a.used
        ]
    return any(axis in axes_of(entry) for spec in specs for entry in spec)


def _memory(program: Program) -> dict[str, int]:
    """XLA's own totals for one device in bytes, by name; empty where a backend gives none."""
    stats = program.update.memory_analysis()
    if stats is None:
        return {}
    memory = {
        "arguments_bytes": stats.argument_size_in_bytes,
        "outputs_bytes": stats.output_size_in_bytes,
        "reused_bytes": stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
    }
    lasting = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory["total_bytes"] = lasting + stats.temp_size_in_bytes
    if program.hardware.kind != "described":
        init = program.init_memory
        memory["init_peak_bytes"] = init.output_size_in_bytes + init.temp_size_in_bytes
    return memory


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """The record of a program's inspection."""
    del make
    return inspect(program).record()


measure = Measure(_taken, runs=False)
