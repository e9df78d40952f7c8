"""Explain every collective of a compiled update: `explain(program)`."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import replace

from jaxpar.core.errors import expect
from jaxpar.core.mesh import sizes_of
from jaxpar.hlo.collectives import Collective, axes_of, collectives
from jaxpar.hlo.flow import Flow
from jaxpar.hlo.parse import Module, parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.hlo.parts import Part, parts_of
from jaxpar.hlo.schedule import between
from jaxpar.measures.explain.asked import Asked, Ways, asked_of
from jaxpar.measures.explain.matched import Matches
from jaxpar.measures.explain.meaning import Meaning, Meanings, line_among, phase_of_name
from jaxpar.measures.explain.places import Places
from jaxpar.measures.explain.reasons import reason_of
from jaxpar.measures.explain.record import Explained, Explanation
from jaxpar.measures.explain.rows import row_of
from jaxpar.measures.explain.synchronisation import synchronised
from jaxpar.measures.explain.unsound import faults_of
from jaxpar.measures.links import moved
from jaxpar.program.record import Program
from jaxpar.step.record import Step


def explain(program: Program) -> Explanation:
    """Say of every collective of a compiled update what it moves, where it is asked for, and why.

    Nothing is run. A program that is not of described hardware is compiled once more for it, unless
    it was compiled with `explains=True`.
    """
    made = "jaxpar.compile_step(step, hardware=...) makes it"
    expect("explain's program", program, Program, made)
    finished, partitioned = program.text, program.dumps.partitioned
    node = program.hardware.devices_per_node
    found = explained(program.step, parse(finished), parse(partitioned or finished), node)
    averaging = program.step.layout.strategy.averaging
    if program.average is None or averaging is None:
        return found
    rows = synchronised(program.step, parse(program.average.as_text()), node)
    return replace(found, synchronisation=rows, every=averaging.every)


def explained(
    step: Step, finished: Module, partitioned: Module, devices_per_node: int | None = None
) -> Explanation:
    """The collectives of a step's update, explained from its modules.

    Args:
        step: whose update it is.
        finished: as it runs.
        partitioned: the same right after partitioning.
        devices_per_node: how many consecutive devices share a node; None where that is not known.
    """
    started = time.perf_counter()
    sizes = sizes_of(step.layout.mesh)
    places = Places(step)
    sums = Sums(partitioned, sizes, places.dims)
    matches = Matches(asked_of(partitioned, places, sums))
    meanings, flow = Meanings(places), Flow(finished)
    ways = Ways(flow, places)
    grouped: dict[tuple, list[tuple[Part, Collective]]] = defaultdict(list)
    for one in collectives(finished):
        axes = axes_of(one, sizes)
        crosses = None
        if devices_per_node is not None:
            crosses = moved(one, devices_per_node).between_nodes
        overlapped = bool(between(flow, one))
        parts = parts_of(flow, one)
        for part in parts:
            ends = ways.ends(part)
            asked = matches.of(part, axes, ends)
            if asked is None:
                told: tuple = _told_of_names(part)
            else:
                meaning = meanings.of(asked)
                told = _told(asked, meaning, places, one.kind)
            key = (one.kind, axes, *told, overlapped, crosses, len(parts) > 1)
            grouped[key].append((part, one))
    rows = [_row(key, members) for key, members in grouped.items()]
    rows.sort(key=lambda row: (-row.bytes, row.kind, row.what, row.phase))
    return Explanation(tuple(rows), faults_of(sums, places), time.perf_counter() - started)


def _told(asked: Asked, meaning: Meaning, places: Places, kind: str) -> tuple:
    """(phase, recomputed, what, parameter, module, source, reason) of a collective."""
    reason = reason_of(asked, meaning, places, kind)
    owner = meaning.path if meaning.path in places.step.layout.parameters else ""
    return (
        meaning.phase,
        meaning.recomputed,
        meaning.what(places),
        places.called(owner) if owner else "",
        meaning.module,
        meaning.source,
        reason,
    )


def _told_of_names(part: Part) -> tuple:
    """The same of a part that is like no collective of the partitioned module: its names alone."""
    phase, recomputed = phase_of_name(part.names[0] if part.names else "")
    return (phase, recomputed, "", "", "", line_among(part.frames), "")


def _row(key: tuple, members: list[tuple[Part, Collective]]) -> Explained:
    """The row of parts that are explained alike."""
    kind, axes, phase, recomputed, what, parameter, module, source, reason, *rest = key
    overlapped, crosses, combined = rest
    return row_of(
        members,
        kind=kind,
        axes=axes,
        phase=phase,
        recomputed=recomputed,
        what=what,
        parameter=parameter,
        module=module,
        source=source,
        reason=reason,
        overlapped=overlapped,
        crosses_nodes=crosses,
        combined=combined,
    )
