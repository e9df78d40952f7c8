"""The collectives of one synchronisation of replicas, which is a program of its own."""

from __future__ import annotations

from collections import defaultdict

from jaxpar.core.mesh import sizes_of
from jaxpar.hlo.collectives import Collective, axes_of, collectives
from jaxpar.hlo.flow import Flow
from jaxpar.hlo.parse import Module
from jaxpar.hlo.parts import Part, parts_of
from jaxpar.hlo.schedule import between
from jaxpar.measures.explain.asked import Ways, one_path
from jaxpar.measures.explain.lines import first_lines
from jaxpar.measures.explain.places import MODEL, PARAMETERS, Places
from jaxpar.measures.explain.record import SYNCHRONISATION, Explained
from jaxpar.measures.explain.rows import row_of
from jaxpar.measures.links import moved
from jaxpar.step.record import Step
from jaxpar.strategies.record import REPLICA


def synchronised(
    step: Step, average: Module, devices_per_node: int | None = None
) -> tuple[Explained, ...]:
    """The collectives of one synchronisation, most bytes first.

    Args:
        step: whose replicas synchronise.
        average: the compiled synchronisation.
        devices_per_node: how many consecutive devices share a node; None where that is not known.
    """
    sizes, flow = sizes_of(step.layout.mesh), Flow(average)
    places = Places(step, has_metrics=False)
    ways, lines = Ways(flow, places), first_lines(step.asked.loss)[0]
    grouped: dict[tuple, list[tuple[Part, Collective]]] = defaultdict(list)
    for one in collectives(average):
        axes = axes_of(one, sizes)
        node = devices_per_node
        crosses = None if node is None else moved(one, node).between_nodes
        parts = parts_of(flow, one)
        for part in parts:
            path = one_path(ways.ends(part).results, PARAMETERS, MODEL)
            key = (one.kind, axes, path, bool(between(flow, one)), crosses, len(parts) > 1)
            grouped[key].append((part, one))
    rows = [_row(places, lines, key, members) for key, members in grouped.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.kind, row.what)))


def _row(places: Places, lines, key: tuple, members: list[tuple[Part, Collective]]) -> Explained:
    """The row of what one array of the state has in a synchronisation."""
    kind, axes, path, overlapped, crosses, combined = key
    averaging = places.step.layout.strategy.averaging
    assert averaging is not None, "only replicas synchronise"
    when = f"every {averaging.every} updates" if averaging.every else "at the end of training"
    over = " and ".join(f"`{axis}`" for axis in axes)
    called = places.called(path)
    reason = ""
    if path and REPLICA in axes:
        reason = (
            f"replicas train apart along `{REPLICA}`, and go on from the average of their {called} "
            f"{when}: {kind} over {over}"
        )
    return row_of(
        members,
        kind=kind,
        axes=axes,
        phase=SYNCHRONISATION,
        recomputed=False,
        what=f"average of {called}" if path else "",
        parameter=called if path in places.step.layout.parameters else "",
        module=places.module_of(path),
        source=lines.get(path, ""),
        reason=reason,
        overlapped=overlapped,
        crosses_nodes=crosses,
        combined=combined,
    )
