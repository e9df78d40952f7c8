"""Several layouts of MODEL in one table: compare llama3_8b fsdp@data=64 fsdp+tensor@data=8,model=8

A LAYOUT is `STRATEGY@MESH`, as `--strategy` and `--mesh` have them, and may go on with what `--set`
takes: `fsdp@data=64@remat=full@microbatches=2`. All have the same model, batch and hardware. For
described hardware each step's time is predicted.
"""

import time
from typing import Any

from jaxpar.cli.layouts import laid_out
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.comparison import Compared, show_comparison
from jaxpar.core.errors import LayoutError
from jaxpar.measures.inspect import inspect
from jaxpar.measures.predict import Prediction, is_predictable, predict

TAKES = "MODEL LAYOUT ..."
READS = ("hardware", "mode", "batch", "microbatches", "set", "report")


def verb(options: Options, screen: Screen) -> int:
    """Compare; exit status 1 when no layout both fits and is as its strategy states."""
    started = time.perf_counter()
    model, *layouts = options.words
    named = laid_out(options, layouts)
    compared = []
    for number, (text, one) in enumerate(named, 1):
        if isinstance(one, LayoutError):
            compared.append(Compared(text, None, str(one)))
            continue
        with screen.doing(f"compiling {text}, {number} of {len(named)}"):
            program = one.compile(for_speed=False)
            predicted = predict(program, explains=False) if is_predictable(program) else None
            compared.append(Compared(text, inspect(program), prediction=predicted))
    show_comparison(screen, model, compared)
    rows = [
        {"layout": one.name}
        | ({"refusal": one.refusal} if one.inspection is None else one.inspection.record())
        | ({} if one.prediction is None else _predicted(one.prediction))
        for one in compared
    ]
    seconds = time.perf_counter() - started
    screen.finish(
        {"model": model, "hardware": options.hardware, "layouts": rows, "seconds": seconds}
    )
    return 0 if any(one.is_usable for one in compared) else 1


def _predicted(prediction: Prediction) -> dict[str, Any]:
    """What a prediction adds to the record of an inspected layout."""
    found, names = prediction.record(), ("step_seconds", "low_seconds", "high_seconds", "mfu")
    return {name: found[name] for name in (*names, "exposed_seconds")}
