"""A comparison on the screen: one table of several layouts, whichever way round it fits."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxpar.cli.screen import Screen
from jaxpar.cli.tables import table
from jaxpar.core.figures import bytes_text, flops_text, seconds_text
from jaxpar.measures.inspect import Inspection
from jaxpar.measures.predict import Prediction

AS_GOOD = 1e-3
"""Bounds that differ by less are called the same."""


@dataclass(frozen=True)
class Compared:
    """One of several layouts: its name as typed, its inspection or why there is none, and the
    prediction of its step where the hardware's speed is known."""

    name: str
    inspection: Inspection | None
    refusal: str = ""
    prediction: Prediction | None = None

    @property
    def is_usable(self) -> bool:
        """Whether it is as its strategy states and is not known not to fit."""
        if self.inspection is None or not self.inspection.ok:
            return False
        memory = self.inspection.device_memory
        return memory is None or memory.fits is not False


def show_comparison(screen: Screen, model: str, compared: Sequence[Compared]) -> None:
    """Show a table of the layouts that could be made, then what is wrong with each."""
    made = [one for one in compared if one.inspection is not None]
    if made:
        first = made[0].inspection
        assert first is not None
        tokens = f", {first.work.tokens:,} tokens" if first.work.tokens else ""
        screen.say(
            f"{model} on {first.hardware}: {first.work.rows:,} rows{tokens} a step",
            style="bold",
        )
        _show_table(screen, made)
    for one in compared:
        if one.inspection is None:
            screen.say(f"{one.name}: {one.refusal}", style="red")
            continue
        for fault in (*one.inspection.faults, *map(str, one.inspection.errors)):
            screen.say(f"{one.name}: {fault}", style="red")
    _show_least(screen, made)


def _show_table(screen: Screen, made: Sequence[Compared]) -> None:
    """Show a row a layout if that fits, else a column a layout, else a block each."""
    columns: dict[str, list[str]] = {"layout": [one.name for one in made]}
    for one in made:
        assert one.inspection is not None
        for name, cell in (_cells(one.inspection) | _predicted(one.prediction)).items():
            columns.setdefault(name, []).append(cell)
    head, rows = list(columns), list(zip(*columns.values(), strict=True))
    turned = [[name, *cells] for name, cells in list(columns.items())[1:]]
    names = ["per device per step", *columns["layout"]]
    if table(head, rows, screen.width).head or not table(names, turned, screen.width).head:
        screen.table(head, rows)
    else:
        screen.table(names, turned)


def _cells(inspection: Inspection) -> dict[str, str]:
    """What is compared, by the head of its column; the same heads for one hardware."""
    work, memory, bound = inspection.work, inspection.device_memory, inspection.bounds
    communicated = {"inside_nodes": 0.0, "between_nodes": 0.0, "anywhere": 0.0}
    for sums in inspection.bytes_by_axes().values():
        for place, count in sums.items():
            communicated[place] += count
    cells = {
        "devices": f"{inspection.layout.mesh.devices:,}",
        "memory per device": "-" if memory is None else bytes_text(memory.total_bytes),
    }
    if memory is not None and memory.device_bytes is not None:
        share = f"{memory.total_bytes / memory.device_bytes:.1%}"
        cells["of its memory"] = share if memory.fits else f"{share}, does not fit"
    cells["FLOPs"] = flops_text(work.device_flops)
    cells["FLOPs recomputed"] = flops_text(work.device_recomputed_flops)
    if bound is None:
        return cells | {"communication": bytes_text(sum(communicated.values()))}
    count = work.tokens or work.rows
    unit = "tokens" if work.tokens else "rows"
    most = f"{count / bound.step_seconds:,.0f}" if bound.step_seconds else "-"
    return cells | {
        "bytes inside nodes": bytes_text(communicated["inside_nodes"]),
        "bytes between nodes": bytes_text(communicated["between_nodes"]),
        "compute at least": seconds_text(bound.compute_seconds + bound.recomputation_seconds),
        "inside nodes at least": seconds_text(bound.link_seconds),
        "between nodes at least": seconds_text(bound.network_seconds),
        "step at least": seconds_text(bound.step_seconds),
        f"{unit}/s at most": most,
    }


def _predicted(prediction: Prediction | None) -> dict[str, str]:
    """What is predicted, by the head of its column."""
    if prediction is None:
        return {}
    return {
        "step predicted": seconds_text(prediction.step_seconds),
        "exposed": seconds_text(prediction.exposed_seconds),
        "MFU": f"{prediction.mfu:.1%}",
    }


def _show_least(screen: Screen, made: Sequence[Compared]) -> None:
    """Show which usable layout is predicted to be fastest, or has the least bound, of several."""
    times = {
        one.name: one.prediction.step_seconds
        for one in made
        if one.is_usable and one.prediction is not None
    }
    if len(times) > 1:
        name, seconds = min(times.items(), key=lambda pair: pair[1])
        screen.say(f"fastest, as predicted: {name}, a step of {seconds_text(seconds)}")
        return
    least = {
        one.name: one.inspection.bounds.step_seconds
        for one in made
        if one.inspection is not None and one.is_usable and one.inspection.bounds is not None
    }
    if len(least) > 1:
        best = min(least.values())
        names = [name for name, seconds in least.items() if seconds <= best * (1 + AS_GOOD)]
        screen.say(
            f"least bound: {' and '.join(names)}; bounds follow from published rates, and a real "
            "step takes longer"
        )
