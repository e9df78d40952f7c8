"""What a person sees: tables, a progress bar and plain lines, on the terminal by way of rich.

With `--json` standard output belongs to the record, so all of this goes to standard error.
"""

import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxpar.core.mesh import axes_of
from jaxpar.hardware.record import Hardware
from jaxpar.layout.record import Layout
from jaxpar.measures.dims import dims_of_layout
from jaxpar.measures.inspect import Inspection
from jaxpar.measures.lint import Finding
from jaxpar.measures.verify.verify import Verdict
from jaxpar.runtime.train import Outcome
from jaxpar.step.modes.record import Island

PICTURE_COLUMNS = 108
_MEETING = "averaging (not every step)"
_UNITS = ("B", "KB", "MB", "GB", "TB")


class Screen:
    """Where a command's words go."""

    def __init__(self, as_json: bool, *, pictured: bool = False):
        self.as_json = as_json
        width = PICTURE_COLUMNS if pictured else None
        self.console = Console(stderr=as_json, highlight=False, record=pictured, width=width)

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print a line."""
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def finish(self, record: dict) -> None:
        """Print the record, if it was asked for."""
        if self.as_json:
            print(json.dumps(_strict(record)), file=sys.stdout, flush=True)

    def picture(self, path: Path, title: str) -> None:
        """Save all that was shown as an SVG picture, for a page or a slide."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.console.save_svg(str(path), title=title)

    def layout(self, layout: Layout, hardware: str, *, whole: bool = True) -> None:
        """Show where every parameter lies."""
        mesh, devices = layout.mesh, layout.mesh.devices
        count = sum(a.size for a in layout.parameters.values())
        self.say(
            f"{layout.model.name} ({count:,} parameters) under {layout.strategy.name} on {mesh}: "
            f"{devices} {hardware} device{'s' if devices > 1 else ''}, batch of "
            f"{layout.model.batch_size}",
            style="bold",
        )
        if whole:
            rows = [
                [
                    array.path,
                    _placed(array),
                    _bytes(array.device_bytes(mesh)),
                    " x ".join(map(str, array.shape)),
                ]
                for array in layout.parameters.values()
            ]
            head = ["parameter", "split", "bytes a device", "shape"]
            self.console.print(_table(head, rows))
            if any(a.stored != a.computed for a in layout.parameters.values()):
                self.say("* gathered for use", style="dim")
        share = layout.parameter_device_bytes / max(1, layout.parameter_bytes)
        self.say(
            f"parameters: {_bytes(layout.parameter_bytes)} in all, "
            f"{_bytes(layout.parameter_device_bytes)} on each device ({share:.1%})"
        )
        for note in layout.notes:
            self.say(f"note: {note}", style="yellow")

    def traffic(self, inspection: Inspection) -> None:
        """Show the collectives of one step, and of one averaging where there is such a thing."""
        rows = [
            [
                row.kind,
                " x ".join(row.axes),
                f"{row.count:,}",
                _bytes(row.bytes),
                source or (_short(row.sources[0]) if row.sources else ""),
            ]
            for group, source in ((inspection.collectives, ""), (inspection.averaging, _MEETING))
            for row in group
        ]
        head = ["collective", "over axes", "times a step", "bytes a step", "from"]
        if rows:
            self.console.print(_table(head, rows))
        else:
            self.say("nothing is said on the wire")
        if inspection.averaging:
            every = inspection.layout.strategy.averaging.every
            when = f"every {every} updates" if every else "at the end of training"
            self.say(
                f"copies are averaged {when}: {_bytes(inspection.bytes_per_step)} a step in all"
            )
        for fault in inspection.faults:
            self.say(f"broken promise: {fault}", style="red")

    def dims(self, layout: Layout) -> None:
        """Show what the dims of a model that nobody annotated were found to be."""
        if not layout.model.named:
            return
        rows = [
            [
                row["name"],
                row["role"],
                f"{row['size']:,}",
                " x ".join(row["axes"]) or "whole",
                _places(row["places"]),
            ]
            for row in dims_of_layout(layout)
        ]
        self.console.print(_table(["dim", "role", "size", "over", "in"], rows))

    def lint(self, findings: tuple[Finding, ...], *, strict: bool) -> None:
        """Show where a program is not what was asked for."""
        for finding in findings:
            self.say(f"{finding.kind}: {finding}", style="red" if strict else "yellow")

    def islands(self, islands: tuple[Island, ...]) -> None:
        """Show what explicit mode left to XLA, a line a primitive and place."""
        for primitive, source in dict.fromkeys((i.primitive, i.source) for i in islands):
            self.say(f"island: {primitive} at {_short(source)} has no typed rule, left to XLA")

    def schedule(self, inspection: Inspection) -> None:
        """Show what every stage does at every tick, where layers run in stages."""
        schedule = inspection.schedule
        if schedule is None:
            return
        self.say(
            f"schedule {schedule.name}: {schedule.microbatches} microbatches through "
            f"{schedule.stages} stages in {schedule.ticks} ticks, idle for "
            f"{schedule.idle_share:.1%} of them, at most {schedule.peak_live} activations live on "
            "a stage"
        )
        lines = schedule.picture().splitlines()
        width = self.console.width
        for line in lines[:16]:
            self.say(line if len(line) <= width else f"{line[: width - 1]}…", style="cyan")
        if len(lines) > 16:
            self.say(f"and {len(lines) - 16} more stages", style="dim")

    def memory(self, inspection: Inspection, hardware: Hardware) -> None:
        """Show what one device holds, and whether it has the room."""
        if not inspection.memory:
            return
        total, temporary = (inspection.memory[n] for n in ("total_bytes", "temporary_bytes"))
        self.say(
            f"memory of one device: {_bytes(total)}, of which {_bytes(temporary)} are temporary"
        )
        room = hardware.memory_bytes
        if room and total > room:
            self.say(
                f"that is more than the {_bytes(room)} of an {hardware.name}: use more devices, a "
                "smaller --batch, or --set remat=full",
                style="red",
            )

    def rows(self, rows: list[dict], columns: tuple[str, ...]) -> None:
        """Show chosen entries of an experiment's rows; dots reach into records."""
        head = [c if "said" in c else c.rpartition(".")[2] for c in columns]
        cells = [[_cell(c, _entry(row, c)) for c in columns] for row in rows]
        self.console.print(_table(head, cells))

    def verdict(self, verdict: Verdict) -> None:
        """Show what verification found, on one line when all is well."""
        worst = verdict.decisive
        if verdict.ok:
            arrays = max(check.arrays for check in verdict.checks)
            self.say(
                f"verified: {arrays} arrays over {verdict.steps} steps equal one device's, largest "
                f"relative error {worst.error:.1e} (bound {worst.bound:.0e}, {verdict.dtype})",
                style="green",
            )
            if verdict.algorithm.startswith("parameter"):
                self.say(f"one device did {verdict.algorithm}", style="green")
            return
        self.say(
            f"not the same as one device: {worst.name} of {worst.worst} is off by "
            f"{worst.error:.1e} (bound {worst.bound:.0e}, {verdict.dtype})",
            style="red",
        )
        self.say(f"likely mistake: {verdict.likely_mistake}", style="red")

    @contextmanager
    def progress(self, steps: int, unit: str, units_a_step: int):
        """A bar with loss and speed; yields the function that `train` calls each step."""
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:,.1f} steps/s"),
            TextColumn("{task.fields[units]:,.0f} {task.fields[unit]}/s"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("", total=steps, loss=float("nan"), rate=0.0, units=0.0, unit=unit)

            def watch(step: int, metrics: dict[str, float]) -> None:
                if "loss" not in metrics:
                    if step < steps:  # the last look at the test split is shown when all is done
                        bar.console.print(_metrics(f"step {step}", metrics), highlight=False)
                    return
                elapsed = bar.tasks[task].elapsed or 1e-9
                bar.update(
                    task,
                    completed=step,
                    loss=metrics["loss"],
                    rate=step / elapsed,
                    units=step / elapsed * units_a_step,
                )

            yield watch

    def outcome(self, outcome: Outcome) -> None:
        """Show what training came to."""
        self.say(
            f"{outcome.steps} steps in {outcome.seconds:.1f} s, "
            f"{outcome.steps_per_second:,.1f} steps/s, "
            f"{outcome.units_per_second:,.0f} {outcome.unit}/s"
        )
        shown = dict(outcome.test)
        self.say(_metrics("test", shown), style="bold green")


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, dict):
        return {name: _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(row: dict, column: str) -> Any:
    value: Any = row
    for name in column.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ",".join(f"{axis}={size}" for axis, size in value.items())
    if (
        "bytes" in column.rpartition(".")[2].split("_")
        and "per_byte" not in column
        or "said" in column
    ):
        return _bytes(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _metrics(head: str, metrics: dict[str, float]) -> str:
    parts = []
    for name, value in metrics.items():
        name = name.removeprefix("test_").replace("_", " ")
        parts.append(f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.4f}")
    return f"{head}: {', '.join(parts)}"


def _table(columns: list[str], rows: list[list[str]]) -> Table:
    """A plain table; on a narrow screen the last column gives way, never the others."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        cells = [row[i] for row in rows]
        last = i == len(columns) - 1
        table.add_column(
            column,
            justify="right" if cells and all(cell[:1].isdigit() for cell in cells) else "left",
            no_wrap=True,
            min_width=None if last else max(map(len, [column, *cells])),
        )
    for row in rows:
        table.add_row(*row)
    return table


def _placed(array) -> str:
    cuts = [
        f"{dim} by {' x '.join(axes_of(entry))}"
        for dim, entry in zip(array.dims, array.stored, strict=True)
        if entry is not None
    ]
    whole = "whole" if not cuts else ", ".join(cuts)
    return whole + (" *" if array.stored != array.computed else "")


def _places(places: list[str]) -> str:
    more = f" and {len(places) - 2} more" if len(places) > 2 else ""
    return ", ".join(places[:2]) + more


def _bytes(count: int) -> str:
    size = float(count)
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.2f} {unit}"
        size /= 1000
    raise AssertionError(count)


def _short(source: str) -> str:
    if source.startswith("weight "):
        return source
    place, _, function = source.partition(" ")
    return f"{place.rpartition('/')[2]} {function}".strip()
