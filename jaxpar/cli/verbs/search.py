"""The best layout for so many GPUs: search llama3_8b --hardware h100 --devices 64 --batch 512

With LAYOUTs, as `compare` takes them, the best of these. `--budget 0s` compiles none: layouts are
estimated by formulas, thousands in seconds.
"""

import json
import re
import time

from jaxpar.cli.environment import cache_folder
from jaxpar.cli.files import unused
from jaxpar.cli.options import Options, make_folder
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.search import show_found, show_search
from jaxpar.core.errors import RequestError
from jaxpar.search.search import search

TAKES = "MODEL [LAYOUT] ..."
READS = ("hardware", "devices", "batch", "mode", "budget", "set", "out", "report")

_BUDGET = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|h|)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


def verb(options: Options, screen: Screen) -> int:
    """Search; exit status 1 when no layout that was compiled fits, or none is estimated to."""
    started = time.perf_counter()
    model, *layouts = options.words
    count = options.device_count
    if count is None and not layouts:
        raise RequestError("search needs the number of devices: say --devices 64")
    budget = _budget(options.budget)
    file = unused(options.file("search", "plan.json"))
    folder = cache_folder("searches")
    with screen.doing(f"laying out {model}" + (f" on {count} devices" if count else "")):
        found = search(
            options.case,
            devices=count,
            layouts=layouts or None,
            budget_seconds=budget,
            folder=folder,
            watch=lambda number, count, one: show_found(screen, number, count, one),
        )
    show_search(screen, found)
    record = {**found.record(), "seconds": time.perf_counter() - started}
    if found.winner is not None:
        make_folder(file)
        file.write_text(json.dumps(found.plan(), indent=2) + "\n")
        screen.files.append(file)
        screen.say(f"plan: {file}; {options.program} train --plan {file} runs it")
        record["plan_file"] = str(file)
    screen.finish(record)
    is_answered = found.winner is not None or (not budget and any(o.may_fit for o in found.rated))
    return 0 if is_answered else 1


def _budget(text: str) -> float:
    """Seconds of a budget as typed.

    >>> _budget("180s"), _budget("3m"), _budget("0.5h")
    (180.0, 180.0, 1800.0)
    """
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise RequestError(f"--budget {text}: write a time, such as 90s, 3m or 1h")
    return float(match[1]) * _SECONDS[match[2]]
