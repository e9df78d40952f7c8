"""The collectives for which a predicted step waits, and what they move."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from jaxpar.core.mesh import sizes_of
from jaxpar.costs.links import collective_seconds
from jaxpar.costs.rates import Device
from jaxpar.costs.replay import Replay
from jaxpar.hlo.collectives import axes_of, collectives
from jaxpar.hlo.parse import parse
from jaxpar.measures.explain.explain import explain
from jaxpar.measures.explain.record import Explained
from jaxpar.program.record import Program

SHOWN = 12
"""Collectives that are named with what of them is exposed."""

NAMED = 2
"""Of what one collective moves, so many are named."""


@dataclass(frozen=True)
class Exposed:
    """A collective for which a step waits.

    Attributes:
        name, kind, axes: of the collective, and the mesh axes that it is over.
        count: how often it runs in a step.
        seconds, exposed_seconds: of all its runs, and of those while nothing is computed.
        bytes: of all its runs, the payload of a device.
        what: what it moves, "gradient of blocks/up", the most bytes first where XLA combined
            several; "" where it was not explained.
        source: the person's line of the first of these, "file:line"; "" where it is not known.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    count: float
    seconds: float
    exposed_seconds: float
    bytes: float
    what: str = ""
    source: str = ""


def exposed_of(
    program: Program, replayed: Replay, device: Device, explains: bool
) -> tuple[Exposed, ...]:
    """The collectives for which a step waits, the longest first.

    Args:
        program: whose update was replayed.
        replayed: its schedule in time.
        device: whose rates these are.
        explains: whether they are to say what they move, if that needs no second compilation.
    """
    sizes = sizes_of(program.step.layout.mesh)
    known = {(c.computation, c.name): c for c in collectives(parse(program.text))}
    is_written = bool(program.made.dumps.partitioned)
    told = _explained(program) if explains and is_written and replayed.exposed else {}
    found = []
    for about, seconds in sorted(replayed.exposed.items(), key=lambda pair: -pair[1])[:SHOWN]:
        which, rows = known[about], told.get(about[1], [])
        count = float(which.executions)
        found.append(
            Exposed(
                name=which.name,
                kind=which.kind,
                axes=axes_of(which, sizes),
                count=count,
                seconds=count * collective_seconds(which, device),
                exposed_seconds=seconds,
                bytes=float(count * which.bytes_each),
                what=_listed(rows),
                source=rows[0].source if rows else "",
            )
        )
    return tuple(found)


def _explained(program: Program) -> Mapping[str, list[Explained]]:
    """The name of an instruction -> what is explained of it, most bytes first."""
    found: dict[str, list[Explained]] = defaultdict(list)
    for row in explain(program).rows:
        for name in row.operations:
            found[name].append(row)
    return found


def _listed(rows: list[Explained]) -> str:
    """What rows move, "gradient of blocks/up, gradient of blocks/down and 3 more"."""
    names = list(dict.fromkeys(row.what for row in rows if row.what))
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
