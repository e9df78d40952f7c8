"""What would make it fit: changes of a case, each compiled, and their effect on memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from jaxpar.case import Case, Resolved
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import bytes_text
from jaxpar.core.hooks import REMAT
from jaxpar.core.mesh import MeshShape, sizes_of
from jaxpar.core.nvidia import has_cudnn
from jaxpar.measures.explain.memory import StepMemory, step_memory
from jaxpar.measures.inspect import inspect
from jaxpar.measures.work import work


def what_if(asked: Resolved, now: StepMemory, screen: Screen) -> list[dict[str, Any]]:
    """Each change with its effect, the smallest peak first; one that is refused says why.

    Args:
        asked: the case that is changed.
        now: its memory.
        screen: that tells what is being compiled.
    """
    rows = []
    for change, case in changes(asked):
        with screen.doing(f"what if {change}: compiling"):
            rows.append({"change": change, **_effect(case, now)})
    return sorted(rows, key=lambda row: row.get("peak_bytes", float("inf")))


def changes(asked: Resolved) -> Iterator[tuple[str, Case]]:
    """(the change in words, the case with it): rematerialization, fused attention, microbatches,
    a mesh of twice the devices."""
    case, config = asked.case, asked.layout.model.config
    for policy in REMAT:
        if hasattr(config, "remat") and policy != config.remat:
            yield f"remat={policy}", _with(case, {"remat": policy})
    if asked.hardware.is_described and has_cudnn() and hasattr(config, "attention"):
        if config.attention != "fused":
            yield "attention=fused", _with(case, {"attention": "fused"})
    parts = 2 * asked.training.microbatches
    yield f"microbatches={parts}", _with(case, {"microbatches": parts})
    if asked.hardware.is_described:
        for axis, size in asked.layout.mesh.sizes:
            if size > 1:
                sizes = {**sizes_of(asked.layout.mesh), axis: 2 * size}
                mesh = ",".join(f"{name}={n}" for name, n in sizes.items())
                batch = {"batch": asked.layout.model.batch_size}
                yield f"mesh {mesh}", replace(_with(case, batch), mesh=str(MeshShape.parse(mesh)))


def _with(case: Case, more: Mapping[str, Any]) -> Case:
    """A case with more set."""
    return replace(case, set={**case.set, **more})


def _effect(case: Case, now: StepMemory) -> dict[str, Any]:
    """What a case takes, measured by compiling it; or why it cannot be."""
    try:
        program = case.resolve().compile(for_speed=False, explains=True)
        held = step_memory(program)
    except RequestError as error:
        return {"refusal": str(error)}
    if held is None:
        return {"refusal": "XLA tells nothing of the memory of this program"}
    return {
        "peak_bytes": held.peak_bytes,
        "peak_bytes_less": now.peak_bytes - held.peak_bytes,
        "bytes_per_step": inspect(program).bytes_per_step,
        "recomputed_flops_per_step": sum(work(program.step).recomputed_flops.values()),
    }


def show_what_if(screen: Screen, rows: list[dict[str, Any]]) -> None:
    """Show the changes in a table, and what is refused below."""
    made = [row for row in rows if "peak_bytes" in row]
    if made:
        screen.table(
            ["what if", "peak of memory", "less", "bytes per device per step", "recomputed FLOPs"],
            [
                [
                    row["change"],
                    bytes_text(row["peak_bytes"]),
                    f"{'-' if row['peak_bytes_less'] < 0 else ''}"
                    f"{bytes_text(abs(row['peak_bytes_less']))}",
                    bytes_text(row["bytes_per_step"]),
                    f"{row['recomputed_flops_per_step']:.2e}",
                ]
                for row in made
            ],
        )
    for row in rows:
        if "refusal" in row:
            screen.say(f"what if {row['change']}: {row['refusal']}", style="dim")
