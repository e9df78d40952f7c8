"""Layouts as they are typed behind a model: `STRATEGY@MESH`, and fields of `--set` behind that."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from jaxpar.case import Resolved
from jaxpar.cli.options import Options
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.own import hardware_of
from jaxpar.program.devices import prepare
from jaxpar.search.record import Candidate


def laid_out(options: Options, layouts: Iterable[str]) -> list[tuple[str, Resolved | LayoutError]]:
    """The case of each layout by its name as typed, or why it cannot be laid out.

    All are laid out before any is compiled: what is refused is known at once.
    """
    named = [(text, _asked(options, text)) for text in dict.fromkeys(layouts)]
    # CPU devices can be asked for once only, so ask for the largest mesh first.
    largest = max((MeshShape.parse(one.mesh) for _, one in named), key=lambda mesh: mesh.devices)
    prepare(largest, hardware_of(options.hardware))
    return [(text, _laid_out(one)) for text, one in named]


def _asked(options: Options, layout: str) -> Options:
    """The options of one layout: those of all, and its own strategy, mesh and fields."""
    one = Candidate.parse(layout)
    own = set(one.set)
    common: Sequence[str] = options.values["set"]
    values: dict[str, Any] = {
        **{n: None if n in own else value for n, value in options.values.items()},
        "strategy": one.strategy,
        "mesh": one.mesh,
        "set": [
            *(each for each in common if each.partition("=")[0].strip() not in own),
            *(f"{name}={value}" for name, value in one.set.items()),
        ],
    }
    return replace(options, values=values)


def _laid_out(options: Options) -> Resolved | LayoutError:
    """The case of one layout, or why it cannot be laid out."""
    try:
        return options.case.resolve()
    except LayoutError as refusal:
        return refusal
