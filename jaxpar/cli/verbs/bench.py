"""Measure jaxpar itself, side by side with bare JAX: bench overhead"""

from jaxpar.cli.figures import entry_text
from jaxpar.cli.options import Options
from jaxpar.cli.repository import benchmarks
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError
from jaxpar.program.configuration import simulate_devices

TAKES = "NAME"
READS = ("rounds",)
MOST_ROUNDS = 1000


def verb(options: Options, screen: Screen) -> int:
    """Run a benchmark and show its rows; it passes no judgement."""
    name, catalogue = options.words[0], benchmarks()
    benchmark = catalogue.load(name)
    if not 1 <= options.rounds <= MOST_ROUNDS:
        raise RequestError(f"--rounds {options.rounds}: use 1 or more, and {MOST_ROUNDS} at most")
    screen.say(catalogue.summary(name), style="bold")
    simulate_devices(8)
    rows = []
    for row in benchmark(options.rounds):
        rows.append(row)
        screen.say("  " + ", ".join(f"{k} {entry_text(k, v)}" for k, v in row.items()))
    screen.finish({"benchmark": name, "rows": rows})
    return 0
