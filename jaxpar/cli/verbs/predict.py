"""Time of a step on GPUs that are not here: predict llama2_7b --mesh data=8 --hardware h100"""

import json
import time
from math import inf
from pathlib import Path

from jaxpar.cli.options import Options, check_writable, make_folder
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.layout import compiling, show_layout
from jaxpar.cli.show.prediction import show_prediction
from jaxpar.core.errors import RequestError
from jaxpar.measures.predict import predict
from jaxpar.measures.timeline import timeline, tracks

TAKES = "MODEL"
READS = (
    "strategy",
    "mesh",
    "hardware",
    "mode",
    "batch",
    "microbatches",
    "set",
    "timeline",
    "price",
    "plan",
    "report",
)


def verb(options: Options, screen: Screen) -> int:
    """Predict; exit status 1 when it does not fit."""
    started = time.perf_counter()
    if options.price is not None and not 0 < options.price < inf:
        raise RequestError(f"--price {options.price}: give a number above 0")
    if options.timeline:
        check_writable(Path(options.timeline), "--timeline")
    asked = options.case.resolve()
    with screen.doing(compiling(asked)):
        program = asked.compile(for_speed=False, explains=True)
        prediction = predict(program)
    show_layout(screen, asked.layout, asked.hardware)
    show_prediction(screen, prediction, options.price)
    if options.timeline:
        make_folder(Path(options.timeline))
        Path(options.timeline).write_text(json.dumps(timeline(prediction)))
        screen.say(f"timeline: {options.timeline} (open it at ui.perfetto.dev)")
    screen.finish(
        {
            **prediction.record(),
            **prediction.cost(options.price),
            "timeline": tracks(prediction),
            "seconds": time.perf_counter() - started,
        }
    )
    return 0 if prediction.fits else 1
