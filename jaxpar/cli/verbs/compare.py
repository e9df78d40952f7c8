"""Several layouts of MODEL in one table: compare llama3_8b fsdp@data=64 fsdp+tensor@data=8,model=8

A LAYOUT is `STRATEGY@MESH`, as `--strategy` and `--mesh` have them, and may go on with what `--set`
takes: `fsdp@data=64@remat=full@microbatches=2`. All have the same model, batch and hardware.
"""

import time
from dataclasses import replace
from typing import Any

from jaxpar.case import Resolved
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.comparison import Compared, show_comparison
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.own import hardware_of
from jaxpar.measures.inspect import inspect
from jaxpar.program.devices import prepare

TAKES = "MODEL LAYOUT ..."
READS = ("hardware", "mode", "batch", "microbatches", "set")


def verb(options: Options, screen: Screen) -> int:
    """Compare; exit status 1 when no layout both fits and is as its strategy states."""
    started = time.perf_counter()
    model, *layouts = options.words
    named = [(text, _asked(options, text)) for text in dict.fromkeys(layouts)]
    # CPU devices can be asked for once only, so ask for the largest mesh first.
    largest = max((MeshShape.parse(one.mesh) for _, one in named), key=lambda mesh: mesh.devices)
    prepare(largest, hardware_of(options.hardware))
    compared = []
    # All are laid out before any is compiled: what is refused is known at once.
    for number, (text, one) in enumerate([(n, _laid_out(o)) for n, o in named], 1):
        if isinstance(one, LayoutError):
            compared.append(Compared(text, None, str(one)))
            continue
        with screen.doing(f"compiling {text}, {number} of {len(named)}"):
            compared.append(Compared(text, inspect(one.compile(for_speed=False))))
    show_comparison(screen, model, compared)
    rows = [
        {"layout": one.name}
        | ({"refusal": one.refusal} if one.inspection is None else one.inspection.record())
        for one in compared
    ]
    seconds = time.perf_counter() - started
    screen.finish(
        {"model": model, "hardware": options.hardware, "layouts": rows, "seconds": seconds}
    )
    return 0 if any(one.is_usable for one in compared) else 1


def _asked(options: Options, layout: str) -> Options:
    """The options of one layout: those of all, and its own strategy, mesh and fields."""
    strategy, *more = layout.split("@")
    if not strategy or not more or not more[0]:
        raise RequestError(
            f"layout '{layout}': write STRATEGY@MESH, such as fsdp@data=8, and fields that differ "
            "behind it, such as fsdp@data=8@remat=full"
        )
    mesh, *fields = more
    MeshShape.parse(mesh)
    own = {field.partition("=")[0].strip() for field in fields}
    values: dict[str, Any] = {
        **{n: None if n in own else value for n, value in options.values.items()},
        "strategy": strategy,
        "mesh": mesh,
        "set": [
            *(each for each in options.values["set"] if each.partition("=")[0].strip() not in own),
            *fields,
        ],
    }
    return replace(options, values=values)


def _laid_out(options: Options) -> Resolved | LayoutError:
    """The case of one layout, or why it cannot be laid out."""
    try:
        return options.case.resolve()
    except LayoutError as refusal:
        return refusal
