"""One layout on more and more GPUs: scale llama3_8b --strategy fsdp --devices 8..1024 --batch 64"""

import re
import time

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import seconds_text
from jaxpar.search.scaling import Point, Scaling, scaling

TAKES = "MODEL"
READS = (
    "strategy",
    "mesh",
    "hardware",
    "devices",
    "mode",
    "batch",
    "microbatches",
    "set",
    "report",
)

_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})")
BAR = 20
"""Characters of the longest bar."""


def verb(options: Options, screen: Screen) -> int:
    """Predict one layout at every size; exit status 1 when none could be."""
    started = time.perf_counter()
    found = _RANGE.fullmatch((options.devices or "").strip())
    if found is None:
        raise RequestError(
            f"--devices {options.devices or ''}: scale needs a range: write --devices 8..1024"
        )
    least, most = map(int, found.groups())
    with screen.doing(f"compiling for {least} to {most} devices"):
        study = scaling(
            options.case, least=least, most=most, watch=lambda point: _say(screen, point)
        )
    _show(screen, study)
    screen.finish({**study.record(), "seconds": time.perf_counter() - started})
    return 0 if any(point.rows_per_second for point in study.points) else 1


def _say(screen: Screen, point: Point) -> None:
    """Say what one size came to."""
    told = point.prediction.get("refusal") or seconds_text(point.prediction["step_seconds"])
    screen.say(f"  {point.mesh}, batch of {point.batch}: {told}")


def _show(screen: Screen, study: Scaling) -> None:
    """Show the study: a table with a bar for efficiency, and the turning points."""
    rows = []
    for point in study.points:
        share, told = study.efficiency(point), point.prediction
        if share is None:
            rows.append([point.way, str(point.devices), f"{point.batch}", "-", "-", "-", "refused"])
            continue
        exposed = told["exposed_seconds"] / told["step_seconds"]
        rows.append(
            [
                point.way, f"{point.devices:,}", f"{point.batch:,}",
                seconds_text(told["step_seconds"]), f"{exposed:.1%}", f"{share:.1%}",
                "#" * round(BAR * min(1.0, share)),
            ]
        )  # fmt: skip
    head = ["scaling", "devices", "batch", "step, predicted", "exposed", "efficiency", ""]
    screen.table(head, rows)
    for sentence in study.turning_points():
        screen.say(sentence)
