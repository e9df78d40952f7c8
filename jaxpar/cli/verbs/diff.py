"""What changed between two programs: diff before.json after.json, or diff MODEL LAYOUT LAYOUT

A LAYOUT is as `compare` has it. Records are what `inspect`, `compare` or `run` printed with
`--json`; of several programs those of the same name are compared.
"""

from pathlib import Path
from typing import Any

from jaxpar.cli.layouts import laid_out
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.difference import show_difference
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.measures.inspect import inspect
from jaxpar.report.difference import difference, differences
from jaxpar.report.records import as_written, read

TAKES = "A B [C]"
READS = ("hardware", "mode", "batch", "microbatches", "set", "report")


def verb(options: Options, screen: Screen) -> int:
    """Show what came, went and changed; exit status 0 whether anything did or not."""
    if len(options.words) == 3:
        pairs = [_of_layouts(options, screen)]
    else:
        pairs = _of_records(*options.words)
    for pair in pairs:
        show_difference(screen, pair)
    screen.finish({"same": all(pair["same"] for pair in pairs), "pairs": pairs})
    return 0


def _of_layouts(options: Options, screen: Screen) -> dict[str, Any]:
    """The difference between two layouts of a model, both compiled."""
    model, *layouts = options.words
    if len(set(layouts)) < 2:
        raise RequestError(f"diff {model}: both layouts are {layouts[0]}: name two different ones")
    found = []
    for text, one in laid_out(options, layouts):
        if isinstance(one, LayoutError):
            raise LayoutError(f"layout '{text}': {one}")
        with screen.doing(f"compiling {text}"):
            found.append((text, inspect(one.compile(for_speed=False)).record()))
    return difference(*found)


def _of_records(before: str, after: str) -> list[dict[str, Any]]:
    """The differences between the programs of two files."""
    for name in (before, after):
        if not Path(name).exists():
            raise RequestError(
                f"diff: there is no file '{name}': name two records that --json printed, or a "
                "model and two layouts"
            )
    with as_written((before, after)):
        return differences((before, read(Path(before))), (after, read(Path(after))))
