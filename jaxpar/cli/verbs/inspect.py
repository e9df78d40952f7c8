"""Read the program: collectives, memory: inspect llama3_8b --mesh data=8,model=8 --hardware h100"""

import time
from dataclasses import replace
from math import prod

from jaxpar.case import Case, Resolved, load_strategy
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.explained import show_explanation, show_held
from jaxpar.cli.show.inspection import (
    show_collectives,
    show_findings,
    show_memory,
    show_schedule,
)
from jaxpar.cli.show.layout import compiling, show_dims, show_layout
from jaxpar.cli.show.work import show_bytes_by_axes, show_work
from jaxpar.cli.what_if import show_what_if, what_if
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape
from jaxpar.measures.explain.explain import explain
from jaxpar.measures.explain.memory import step_memory
from jaxpar.measures.explain.work import as_record, work_by_module
from jaxpar.measures.inspect import inspect

TAKES = "MODEL"
READS = (
    "strategy",
    "mesh",
    "hardware",
    "mode",
    "lint",
    "batch",
    "microbatches",
    "set",
    "plan",
    "what-if",
    "report",
)


def verb(options: Options, screen: Screen) -> int:
    """Inspect; exit status 1 for an unexpected or missing collective, a finding, or no fit."""
    started = time.perf_counter()
    asked = _resolved(options.case, screen)
    with screen.doing(compiling(asked)):
        program = asked.compile(for_speed=False, explains=True)
        inspection = inspect(program, is_strict=options.lint == "error")
        explanation, held = explain(program), step_memory(program)
    show_layout(screen, asked.layout, asked.hardware)
    show_dims(screen, asked.layout)
    show_collectives(screen, inspection)
    show_explanation(screen, explanation)
    show_bytes_by_axes(screen, inspection)
    show_schedule(screen, inspection)
    show_work(screen, inspection)
    show_memory(screen, inspection)
    show_held(screen, held)
    show_findings(screen, inspection)
    told = inspection.record()
    told["traffic"] = told["collectives"]
    told |= explanation.record()
    told["flops"] = as_record(work_by_module(program.step))
    told["memory"] = told["memory"] | (held.record() if held else {})
    if options.values["what-if"] and held:
        told["what_if"] = what_if(asked, held, screen)
        show_what_if(screen, told["what_if"])
    screen.finish({**told, "seconds": time.perf_counter() - started})
    fits = inspection.device_memory is None or inspection.device_memory.fits is not False
    return 0 if inspection.ok and fits else 1


def _resolved(case: Case, screen: Screen) -> Resolved:
    """The case; with a row for each shard of the batch where the usual one does not divide."""
    try:
        return case.resolve()
    except LayoutError:
        over = load_strategy(case.strategy).compute.get("batch", ())
        mesh = MeshShape.parse(case.mesh) if case.mesh else None
        rows = prod(mesh.size(axis) for axis in over) if mesh else 0
        if "batch" in case.set or not rows or ":" in case.model:
            raise
        rows *= case.set.get("microbatches", 1)
        resolved = replace(case, set={**case.set, "batch": rows}).resolve()
        screen.say(f"note: a batch of {rows} rows, since the usual one does not divide")
        return resolved
