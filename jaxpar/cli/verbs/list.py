"""Show what there is: every catalogue, and in the repository its experiments."""

from jaxpar.cli import repository
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.core.catalogue import CATALOGUES

TAKES = ""
READS = ()


def verb(options: Options, screen: Screen) -> int:
    """Print every catalogue with the first line of each entry."""
    del options
    own = [repository.experiments()] if repository.root() else []
    record = {c.title: {n: c.summary(n) for n in c.names()} for c in (*CATALOGUES, *own)}
    wide = max(len(name) for entries in record.values() for name in entries)
    for title, entries in record.items():
        screen.say(title, style="bold")
        for name, summary in entries.items():
            screen.say(f"  {name:<{wide}} {summary}")
    screen.finish(record)
    return 0
