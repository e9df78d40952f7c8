"""Walk one experiment file: its cases, its claims: run data_parallel"""

import json
import time
from dataclasses import replace

from jaxpar.cli.files import unused
from jaxpar.cli.options import Options, make_folder
from jaxpar.cli.repository import experiments
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.rows import show_rows
from jaxpar.core.figures import sizes_text
from jaxpar.core.mesh import MeshShape
from jaxpar.experiment import Row, walk
from jaxpar.hardware.own import hardware_of
from jaxpar.program.configuration import simulate_devices

TAKES = "NAME"
READS = ("hardware", "out", "report")


def verb(options: Options, screen: Screen) -> int:
    """Run an experiment; exit status 1 when a claim does not hold."""
    name, catalogue = options.words[0], experiments()
    experiment = catalogue.load(name)
    if "hardware" in options.given:
        cases = tuple(replace(case, hardware=options.hardware) for case in experiment.cases)
        experiment = replace(experiment, cases=cases)
    rows_file = unused(options.file(name, "rows.jsonl"))
    started = time.perf_counter()
    # CPU devices can be asked for once only, so ask for the largest mesh first.
    simulated = [case.mesh or "data=8" for case in experiment.cases if _simulates(case.hardware)]
    if simulated:
        simulate_devices(max(MeshShape.parse(mesh).devices for mesh in simulated))
    screen.say(catalogue.summary(name), style="bold")
    rows = []
    make_folder(rows_file)
    screen.files.append(rows_file)
    walked = walk(experiment)
    with rows_file.open("w", encoding="utf-8") as out:
        for number, case in enumerate(experiment.cases, 1):
            what = f"{case.model} {case.strategy} {case.mesh or ''}".rstrip()
            with screen.doing(f"{number} of {len(experiment.cases)}: {what}"):
                row = next(walked)
            rows.append(row)
            out.write(json.dumps(row) + "\n")
            out.flush()
            screen.say(f"  {_case(row)}: {row.get('refusal', 'done')}")
    show_rows(screen, rows, experiment.columns)
    claims = [(claim.sentence, claim.check(tuple(rows))) for claim in experiment.claims]
    for sentence, holds in claims:
        screen.say(
            f"{'holds' if holds else 'FAILS'}: {sentence}", style="green" if holds else "red"
        )
    remarks = list(experiment.remarks(tuple(rows))) if experiment.remarks else []
    for remark in remarks:
        screen.say(remark)
    screen.say(f"rows: {rows_file}")
    ok = all(holds for _, holds in claims)
    screen.finish(
        {
            "experiment": name,
            "ok": ok,
            "claims": [{"claim": sentence, "holds": holds} for sentence, holds in claims],
            "rows": rows,
            "remarks": remarks,
            "seconds": time.perf_counter() - started,
        }
    )
    return 0 if ok else 1


def _simulates(hardware: str) -> bool:
    """Whether hardware of that name is simulated on this machine's CPU."""
    return hardware_of(hardware).kind == "simulated"


def _case(row: Row) -> str:
    """A row's case in the words of the command line."""
    mesh = row["mesh"]
    return f"{row['model']} {row['strategy']} {mesh if isinstance(mesh, str) else sizes_text(mesh)}"
