"""Show what there is: models, strategies, hardware, data and experiments."""

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.core.catalogue import DATA, HARDWARE, MODELS, STRATEGIES, Catalogue

EXPERIMENTS = Catalogue("experiments", "experiment")


def verb(options: Options, screen: Screen) -> int:
    """Print every catalogue with the first line of each entry."""
    del options
    record = {}
    rooms = {
        "models": MODELS,
        "strategies": STRATEGIES,
        "hardware": HARDWARE,
        "data": DATA,
        "experiments": EXPERIMENTS,
    }
    for title, room in rooms.items():
        record[title] = {name: room.summary(name) for name in room.names()}
        screen.say(title, style="bold")
        for name, summary in record[title].items():
            screen.say(f"  {name:<18} {summary}")
    screen.finish(record)
    return 0
