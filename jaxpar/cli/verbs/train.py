"""Train MODEL under a layout, and test it: train mlp --strategy hybrid --mesh data=4,model=2"""

import math
import time

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import sizes_of
from jaxpar.measures.inspect import inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.runtime.train import bits, train


def verb(options: Options, screen: Screen) -> int:
    """Train; with `--verify`, prove the layout too."""
    started = time.perf_counter()
    asked = options.case.resolve()
    if asked.hardware.kind == "described":
        raise RequestError(
            f"hardware '{asked.hardware.name}' is described, not present, so nothing can be "
            "trained on it: use --hardware cpu, or 'inspect' to read the program it would run"
        )
    data = asked.load_data()

    program = asked.compile()
    folder = options.folder(asked.name)
    screen.layout(asked.layout, asked.hardware.name)
    inspection = inspect(program, is_strict=options.lint == "error")
    screen.dims(asked.layout)
    screen.traffic(inspection)
    screen.lint(inspection.lint, strict=inspection.is_strict)
    if inspection.lint and inspection.is_strict:
        screen.say("not trained: repair this, or accept it with --lint warn", style="red")
        screen.finish({"model": asked.layout.model.name, **inspection.record()})
        return 1
    units = math.prod(data.fields["weight"][0]) * asked.layout.model.batch_size
    with screen.progress(asked.training.steps, data.unit, units) as watch:
        outcome = train(
            program, data, asked.training, watch=watch, metrics_file=folder / "metrics.jsonl"
        )
    screen.outcome(outcome)
    record = {
        "model": asked.layout.model.name,
        "data": data.name,
        "strategy": asked.layout.strategy.name,
        "mesh": sizes_of(asked.layout.mesh),
        "devices": asked.layout.mesh.devices,
        "hardware": asked.hardware.name,
        "mode": asked.case.mode,
        **outcome.record(),
        **{f"first_{name}": value for name, value in bits(outcome.first["loss"], data).items()},
        **{name: value for name, value in outcome.test.items() if name.startswith("bits")},
        "collectives": inspection.record()["collectives"],
        "lint": inspection.record()["lint"],
        "metrics": str(folder / "metrics.jsonl"),
    }
    ok = math.isfinite(outcome.test["loss"])
    if not ok:
        screen.say("the loss is no number: lower --set learning_rate, or clip", style="red")
    if options.verify:
        ok = _verified(asked, screen, record) and ok
    screen.say(f"metrics: {folder / 'metrics.jsonl'}")
    screen.say("next: this model under another layout, or a question answered by several:")
    other = (
        "fsdp --mesh data=8" if asked.case.strategy != "fsdp" else "hybrid --mesh data=4,model=2"
    )
    screen.say(f"  python -m experiments train {asked.case.model} --strategy {other}")
    screen.say("  python -m experiments run hybrid_parallel")
    record["seconds_with_start"] = time.perf_counter() - started
    screen.finish(record)
    return 0 if ok else 1


def _verified(asked, screen: Screen, record: dict) -> bool:
    verdict = verify(asked.layout, hardware=asked.hardware, make=asked.make)
    screen.verdict(verdict)
    record["verified"] = verdict.record()
    return verdict.ok
