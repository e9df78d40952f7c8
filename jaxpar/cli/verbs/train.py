"""Train MODEL under a layout, and test it: train mlp --strategy hybrid --mesh data=4,model=2"""

import math
import shlex
import time
from pathlib import Path

from jaxpar.case import Case, Resolved
from jaxpar.cli import repository
from jaxpar.cli.elastic import resumed_case, say_fit
from jaxpar.cli.options import Options, make_folder
from jaxpar.cli.own_code import more_of
from jaxpar.cli.processes import as_typed
from jaxpar.cli.run_files import RunFiles
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.inspection import show_collectives, show_findings
from jaxpar.cli.show.layout import compiling, show_dims, show_layout
from jaxpar.cli.show.training import progress, seconds_in_steps, show_outcome
from jaxpar.cli.show.verdict import show_verdict
from jaxpar.cli.stopping import asked_first
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import sizes_of
from jaxpar.data.record import Dataset
from jaxpar.measures.inspect import Inspection, inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.checkpoint.restoring import Restored, restore
from jaxpar.runtime.checkpoint.resuming import differences
from jaxpar.runtime.checkpoint.weights import folder_of_weights, start_from
from jaxpar.runtime.evaluate import bits
from jaxpar.runtime.metrics_file import cut_back
from jaxpar.runtime.outcome import Outcome, TrainingStopped
from jaxpar.runtime.several import agreed, on_the_same, stops_after
from jaxpar.runtime.supervise import parent_of_all
from jaxpar.runtime.train import train
from jaxpar.step.record import State

TAKES = "MODEL"
READS = (
    "plan",
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
    "resume",
    "devices",
    "weights",
    "on-nan",
    "verify",
    "processes",
    "coordinator",
    "process-id",
    "process-count",
    "patience",
    "report",
)


def verb(options: Options, screen: Screen) -> int:
    """Train; with `--verify`, prove the layout too."""
    started = time.perf_counter()
    case, folder = options.case, None
    if options.mesh == "auto":
        case, folder = resumed_case(options, screen)
    elif options.devices is not None:
        raise RequestError("--devices is how many --mesh auto may use: say --mesh auto")
    asked = case.resolve()
    if asked.hardware.kind == "described":
        raise RequestError(
            f"hardware '{asked.hardware.name}' is described, not present, so nothing can be "
            "trained on it: use --hardware cpu, or 'inspect' to read the program it would run"
        )
    folder = folder or options.file(asked.name, "metrics.jsonl").parent
    files = _files(options, folder, screen)
    files = RunFiles(agreed(files.metrics), agreed(files.checkpoints))
    data = asked.load_data()

    # What can be refused is, before the long work.
    mesh = device_mesh(asked.layout.mesh, asked.hardware)
    step = asked.make(asked.layout)
    program = Program(step, asked.hardware, mesh)
    program.check_runs()
    begins = not (options.resume and checkpoints_in(files.checkpoints))
    if options.weights and begins:
        folder_of_weights(step, options.weights)
    data = on_the_same(program, data, asked.training)
    with screen.doing(compiling(asked)):
        program = compile_step(step, hardware=asked.hardware)
        program.check_runs()
        inspection = inspect(program, is_strict=options.lint == "error")
    if options.resume:
        say_fit(screen, program)
    show_layout(screen, asked.layout, asked.hardware)
    show_dims(screen, asked.layout)
    show_collectives(screen, inspection)
    show_findings(screen, inspection)
    if inspection.errors and inspection.is_strict:
        screen.say("not trained: repair this, or accept it with --lint warn", style="red")
        screen.finish({"model": asked.layout.model.name, **inspection.record()})
        return 1
    start = _restored(options, asked, program, data, files, screen)
    weights = None
    if options.weights and start is None:
        weights = start_from(program, options.weights, seed=asked.training.seed)
    if start and start.metadata.step >= asked.training.steps:
        return _finished(start, asked, screen)
    make_folder(files.metrics)
    screen.files += [files.metrics, files.checkpoints]
    outcome, stopped = _trained(asked, program, data, files, screen, start or weights)
    show_outcome(screen, outcome)
    record = _record(asked, data, inspection, outcome) | {"metrics": str(files.metrics)}
    record["resumed_from_step"] = start and start.metadata.step
    ok = _judged(options, asked, outcome, stopped, record, screen)
    screen.say(f"metrics: {files.metrics}; checkpoint: {outcome.checkpoint or 'none'}")
    if not outcome.finished and outcome.checkpoint:
        screen.say(f"to go on: {_resuming(options)}")
    else:
        _say_what_next(asked.case, options.program, screen)
    record["seconds_with_start"] = time.perf_counter() - started
    screen.finish(record)
    return 0 if ok else 1


def _judged(
    options: Options,
    asked: Resolved,
    outcome: Outcome,
    stopped: TrainingStopped | None,
    record: dict,
    screen: Screen,
) -> bool:
    """Whether training went well and, if that is asked for, is verified; said, and recorded."""
    ok = _is_number(outcome)
    if stopped:
        record["stopped"] = str(stopped)
        screen.say(f"{stopped}{more_of(stopped)}", style="red")
    elif not ok:
        screen.say("the loss is no number: lower --set learning_rate, or clip", style="red")
    if options.verify:
        ok = _verified(asked, screen, record) and ok
    return ok and not stopped


def _is_number(outcome: Outcome) -> bool:
    """Whether what training came to is a number; an update that was skipped may have had none."""
    if not outcome.test and "skipped" in outcome.last:
        return True
    return math.isfinite((outcome.test or outcome.last).get("loss", math.nan))


def _files(options: Options, folder: Path, screen: Screen) -> RunFiles:
    """Where the run writes: where the newest did that is to be resumed, or where none has yet."""
    newest = RunFiles.newest(folder) if options.resume else None
    if options.resume and not (newest and checkpoints_in(newest.checkpoints)):
        screen.say(f"nothing to resume in {folder}: this run starts at step 0")
    return newest or RunFiles.fresh(folder)


def _restored(
    options: Options,
    asked: Resolved,
    program: Program,
    data: Dataset,
    files: RunFiles,
    screen: Screen,
) -> Restored | None:
    """What the newest whole checkpoint holds, if the run is to be resumed and there is one."""
    if not options.resume:
        return None
    if not checkpoints_in(files.checkpoints):
        cut_back(files.metrics, 0)
        return None
    with screen.doing(f"restoring from {files.checkpoints}"):
        start = restore(program, files.checkpoints)
    for note in (*start.notes, *differences(start.metadata, program, data, asked.training)):
        screen.say(f"note: {note}", style="yellow")
    screen.say(f"resumed from {start.folder}: step {start.metadata.step}")
    cut_back(files.metrics, start.metadata.step)
    return start


def _finished(start: Restored, asked: Resolved, screen: Screen) -> int:
    """Say that a run that was to be resumed has come to its end; returns the exit status."""
    steps = asked.training.steps
    screen.say(f"finished already: its {steps} steps are done; --steps with more goes on")
    about = {"model": asked.layout.model.name, "steps": 0, "finished": True}
    screen.finish(
        {**about, "resumed_from_step": start.metadata.step, "checkpoint": str(start.folder)}
    )
    return 0


def _resuming(options: Options) -> str:
    """The command that goes on from the last checkpoint."""
    words = options.typed if parent_of_all() is None else as_typed(options.typed)
    typed = [word for word in words if word != "--resume"]
    return shlex.join([*options.program.split(), *typed, "--resume"])


def _trained(
    asked: Resolved,
    program: Program,
    data: Dataset,
    files: RunFiles,
    screen: Screen,
    start: Restored | State | None,
) -> tuple[Outcome, TrainingStopped | None]:
    """What training came to, and what stopped it before its end."""
    units = math.prod(data.fields["weight"][0]) * asked.layout.model.batch_size

    def asked_to(word: str) -> None:
        screen.say(f"{word}: this step is finished and saved; once more ends at once")

    told = progress(screen, asked.training.steps, data.unit, units, data.test_size)
    with told as watch, asked_first(asked_to) as is_asked:
        try:
            return train(
                program,
                data,
                asked.training,
                state=start,
                watch=watch,
                metrics_file=files.metrics,
                checkpoints=files.checkpoints,
                asked_to_stop=lambda step: stops_after(step, is_asked),
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
        "findings": found["findings"],
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
