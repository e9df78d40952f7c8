"""Partial sums of a compiled update that are certainly not reduced as they should be."""

from __future__ import annotations

from jaxpar.core.mesh import sizes_of
from jaxpar.hlo.parse import parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import rule_of
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS as STAGES
from jaxpar.layout.stages import runs_in_stages
from jaxpar.measures.explain.faults import finding_of
from jaxpar.measures.explain.places import Places
from jaxpar.measures.finding import Finding
from jaxpar.program.record import Program
from jaxpar.step.record import Step
from jaxpar.strategies.record import REPLICA


def unsound(program: Program) -> tuple[Finding, ...]:
    """The faults of a program's partial sums, where it can be told at no great cost.

    A program that XLA has written nothing down of is compiled again only where its loss has
    collectives of its own.
    """
    by_hand = is_by_hand(program.step)
    text = program.dumps.partitioned if by_hand else program.made.dumps.partitioned
    if not text:
        return ()
    places = Places(program.step)
    return faults_of(Sums(parse(text), sizes_of(program.step.layout.mesh), places.dims), places)


def faults_of(sums: Sums, places: Places) -> tuple[Finding, ...]:
    """What is certainly wrong, in the words of a step."""
    layout, by_hand = places.step.layout, is_by_hand(places.step)
    apart = axes_apart(layout)
    return tuple(
        finding_of(fault, places, by_hand) for fault in sums.faults if fault.axis not in apart
    )


def axes_apart(layout: Layout) -> frozenset[str]:
    """The mesh axes whose devices hold different layers or different replicas.

    What differs between them is no partial sum.
    """
    apart = {STAGES} if runs_in_stages(layout.strategy, layout.mesh) else set()
    return frozenset(apart | ({REPLICA} if layout.strategy.averaging else set()))


def is_by_hand(step: Step) -> bool:
    """Whether the loss itself is written per shard, under a shard_map of its own."""
    return any(rule_of(eqn).kind == "shards" for eqn, _ in equations(step.asked.loss.closed))
