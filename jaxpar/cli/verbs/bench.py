"""Measure jaxpar itself, side by side with bare JAX: bench overhead"""

from collections.abc import Callable
from inspect import signature

from jaxpar.cli.options import Options
from jaxpar.cli.repository import benchmarks
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import entry_text
from jaxpar.program.configuration import simulate_devices

TAKES = "NAME"
READS = ("rounds", "minutes")
MOST_ROUNDS, MOST_MINUTES = 1000, 10_000


def verb(options: Options, screen: Screen) -> int:
    """Run a benchmark and show its rows; one that says so judges: 1 if a row of it is not ok."""
    name, catalogue = options.words[0], benchmarks()
    benchmark = catalogue.load(name)
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise RequestError(f"--rounds {options.rounds}: use 1 or more, and {MOST_ROUNDS} at most")
    minutes = _minutes(options, name, benchmark)
    screen.say(catalogue.summary(name), style="bold")
    simulate_devices(8)
    rows = []
    for row in benchmark(options.rounds, **minutes):
        rows.append(row)
        screen.say("  " + ", ".join(f"{k} {entry_text(k, v)}" for k, v in row.items()))
    screen.finish({"benchmark": name, "rows": rows})
    return 0 if all(row.get("ok", True) for row in rows) else 1


def _minutes(options: Options, name: str, benchmark: Callable) -> dict[str, float]:
    """How long a benchmark is to last, for one that lasts as long as it is told."""
    if options.minutes is None:
        return {}
    if "minutes" not in signature(benchmark).parameters:
        raise RequestError(f"bench {name} takes its own time: leave --minutes out")
    if not 0 < options.minutes <= MOST_MINUTES:
        raise RequestError(f"--minutes {options.minutes}: use more than 0, {MOST_MINUTES} at most")
    return {"minutes": options.minutes}
