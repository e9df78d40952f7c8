"""Train MODEL under a layout, and test it: train mlp --strategy hybrid --mesh data=4,model=2"""

import math
import time
from pathlib import Path

from jaxpar.case import Case, Resolved
from jaxpar.cli import repository
from jaxpar.cli.files import unused
from jaxpar.cli.options import Options, make_folder
from jaxpar.cli.own_code import more_of
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.inspection import show_collectives, show_findings
from jaxpar.cli.show.layout import compiling, show_dims, show_layout
from jaxpar.cli.show.training import progress, seconds_in_steps, show_outcome
from jaxpar.cli.show.verdict import show_verdict
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import sizes_of
from jaxpar.data.record import Dataset
from jaxpar.measures.inspect import Inspection, inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.evaluate import bits
from jaxpar.runtime.outcome import Outcome, TrainingStopped
from jaxpar.runtime.several import agreed, on_the_same
from jaxpar.runtime.train import train

TAKES = "MODEL"
READS = (
    "strategy",
    "mesh",
    "hardware",
    "mode",
    "lint",
    "data",
    "steps",
    "batch",
    "microbatches",
    "seed",
    "set",
    "out",
    "verify",
    "processes",
    "coordinator",
    "process-id",
    "process-count",
    "patience",
)


def verb(options: Options, screen: Screen) -> int:
    """Train; with `--verify`, prove the layout too."""
    started = time.perf_counter()
    asked = options.case.resolve()
    if asked.hardware.kind == "described":
        raise RequestError(
            f"hardware '{asked.hardware.name}' is described, not present, so nothing can be "
            "trained on it: use --hardware cpu, or 'inspect' to read the program it would run"
        )
    metrics_file = agreed(unused(options.file(asked.name, "metrics.jsonl")))
    data = asked.load_data()

    # What can be refused is, before the long work.
    mesh = device_mesh(asked.layout.mesh, asked.hardware)
    step = asked.make(asked.layout)
    program = Program(step, asked.hardware, mesh)
    program.check_runs()
    data = on_the_same(program, data, asked.training)
    with screen.doing(compiling(asked)):
        program = compile_step(step, hardware=asked.hardware)
        inspection = inspect(program, is_strict=options.lint == "error")
    show_layout(screen, asked.layout, asked.hardware)
    show_dims(screen, asked.layout)
    show_collectives(screen, inspection)
    show_findings(screen, inspection)
    if inspection.lint and inspection.is_strict:
        screen.say("not trained: repair this, or accept it with --lint warn", style="red")
        screen.finish({"model": asked.layout.model.name, **inspection.record()})
        return 1
    make_folder(metrics_file)
    screen.files.append(metrics_file)
    outcome, stopped = _trained(asked, program, data, metrics_file, screen)
    show_outcome(screen, outcome)
    record = _record(asked, data, inspection, outcome) | {"metrics": str(metrics_file)}
    ok = math.isfinite((outcome.test or outcome.last).get("loss", math.nan))
    if stopped:
        record["stopped"] = str(stopped)
        screen.say(f"{stopped}{more_of(stopped)}", style="red")
    elif not ok:
        screen.say("the loss is no number: lower --set learning_rate, or clip", style="red")
    if options.verify:
        ok = _verified(asked, screen, record) and ok
    screen.say(f"metrics: {metrics_file}")
    _say_what_next(asked.case, options.program, screen)
    record["seconds_with_start"] = time.perf_counter() - started
    screen.finish(record)
    return 0 if ok and not stopped else 1


def _trained(
    asked: Resolved, program: Program, data: Dataset, metrics_file: Path, screen: Screen
) -> tuple[Outcome, TrainingStopped | None]:
    """What training came to, and what stopped it before its end."""
    units = math.prod(data.fields["weight"][0]) * asked.layout.model.batch_size
    with progress(screen, asked.training.steps, data.unit, units, data.test_size) as watch:
        try:
            return train(
                program, data, asked.training, watch=watch, metrics_file=metrics_file
            ), None
        except TrainingStopped as error:
            if not isinstance(error.__cause__, RequestError | OSError):
                raise error.__cause__ or error from None  # a bug, which keeps its traceback
            return error.outcome, error


def _record(asked: Resolved, data: Dataset, inspection: Inspection, outcome: Outcome) -> dict:
    """What was trained and what it came to, JSON-ready."""
    found = inspection.record()
    first = bits(outcome.first["loss"], data) if outcome.first else {}
    return {
        "model": asked.layout.model.name,
        "data": data.name,
        "strategy": asked.layout.strategy.name,
        "mesh": sizes_of(asked.layout.mesh),
        "devices": asked.layout.mesh.devices,
        "hardware": asked.hardware.name,
        "mode": asked.case.mode,
        **outcome.record(),
        "seconds_in_steps": seconds_in_steps(outcome),
        **{f"first_{name}": value for name, value in first.items()},
        **{name: value for name, value in outcome.test.items() if name.startswith("bits")},
        "collectives": found["collectives"],
        "lint": found["lint"],
    }


def _verified(asked: Resolved, screen: Screen, record: dict) -> bool:
    """Verify the layout as well, into the record; returns whether it equals one device."""
    with screen.doing("verifying: compiling, then a few steps there and on one device"):
        verdict = verify(asked.layout, hardware=asked.hardware, make=asked.make)
    show_verdict(screen, verdict)
    record["verified"] = verdict.record()
    return verdict.ok


def _say_what_next(case: Case, program: str, screen: Screen) -> None:
    """Show commands that lead on from this one."""
    other = "fsdp --mesh data=8" if case.strategy != "fsdp" else "hybrid --mesh data=4,model=2"
    screen.say("next: this model under another layout, or a question answered by several:")
    screen.say(f"  {program} train {case.model} --strategy {other}")
    if repository.root():
        screen.say(f"  {program} run hybrid_parallel")
