"""Constraints of a model that replicate what its layout shards, by line.

In a model that names its dims a constraint is kept, and XLA gathers what it replicates. In a plain
model constraints are set aside: one that would replicate costs nothing here, but wherever that
code runs without jaxpar.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of
from jaxpar.core.roles import UNNAMED
from jaxpar.core.source_lines import file_and_line, line_of
from jaxpar.inference.record import FIELD, TracedLoss
from jaxpar.jaxprs.constraints import (
    Aside,
    Entries,
    entries_of,
    is_named,
    scoped_equations,
)
from jaxpar.jaxprs.spell import names_of, spell
from jaxpar.jaxprs.unify import relate
from jaxpar.layout.record import Layout
from jaxpar.measures.finding import Finding
from jaxpar.step.placement import sharded
from jaxpar.step.record import Step

Lost = Mapping[int, tuple[str, ...]]
"""Dim -> the mesh axes that a constraint takes from it, and gives to no other."""


def replicating(step: Step) -> list[Finding]:
    """A finding for each constraint of the model that replicates a dim that its layout shards."""
    layout = step.layout
    if layout.mesh.devices == 1:
        return []
    if layout.model.annotate is not None:
        return list(_of_asides(step)) if layout.model.aside else []
    return list(_of_own(step))


def _equations(traced: TracedLoss, layout: Layout) -> Iterator[tuple[Any, tuple[str, ...], int]]:
    """(equation, what the dims of its first result are known to be, how often it runs)."""
    trace = relate(traced.closed, traced.arguments, traced.weights)
    dims = {path: a.dims for path, a in (*layout.parameters.items(), *layout.state.items())}
    dims |= {FIELD + name: field.dims for name, field in layout.model.batch.items()}
    names = names_of(trace, dims)
    for eqn, scope, times in scoped_equations(traced.closed, trace.scope):
        if eqn.outvars and eqn.outvars[0] in scope.dims:
            yield eqn, spell(trace.classes, names, scope, eqn.outvars[0]), times


def _of_own(step: Step) -> Iterator[Finding]:
    """Of a model that names its dims: what it constrains is what runs."""
    layout, found = step.asked.microbatch, set()
    for eqn, known, times in _equations(step.asked.loss, layout):
        shape = tuple(eqn.outvars[0].aval.shape)
        if is_named(eqn):
            says = eqn.params["says"]
            placed = step.asked.placement.of(eqn.params["names"], shape).after(says)
            entries: Entries | None = tuple(map(axes_of, placed))
            wanted = sharded(layout, known, shape).after(says)
        else:
            entries, wanted = entries_of(eqn), sharded(layout, known, shape).used
        line = line_of(eqn.source_info)
        if entries is None or not line or line in found:
            continue
        if lost := _lost(entries, wanted):
            found.add(line)
            left = prod(layout.mesh.size(a) for entry in entries for a in entry or ())
            item = eqn.outvars[0].aval.dtype.itemsize
            size = prod(shape) // left * item * times * step.microbatches
            yield _finding(layout, line, known, shape, lost, size)


def _of_asides(step: Step) -> Iterator[Finding]:
    """Of a plain model: what its constraints would do."""
    layout, told = step.layout, {}
    for eqn, known, _ in _equations(step.asked.loss, step.asked.microbatch):
        told[line_of(eqn.source_info), len(known)] = known
    for aside in layout.model.aside:
        known = told.get((aside.made_at, len(aside.shape)))
        if known is None or not aside.line:
            continue
        shape = (layout.model.batch_size, *aside.shape[1:]) if aside.shape else ()
        if lost := _lost(aside.entries, sharded(layout, known, shape).used):
            yield _finding(layout, aside.line, known, shape, lost, 0, aside)


def _lost(entries: Entries, wanted: PartitionSpec) -> Lost:
    """What a constraint takes from dims that a layout shards."""
    kept = {axis for entry in entries for axis in entry or ()}
    pairs = zip(entries, wanted, strict=True)
    found = {
        n: tuple(axis for axis in axes_of(want) if axis not in kept)
        for n, (entry, want) in enumerate(pairs)
        if entry is not None and not entry
    }
    return {n: axes for n, axes in found.items() if axes}


def _finding(
    layout: Layout,
    line: str,
    known: tuple[str, ...],
    shape: tuple[int, ...],
    lost: Lost,
    size: int,
    aside: Aside | None = None,
) -> Finding:
    """The finding of one constraint; `aside` if it is one that is set aside."""
    dims = " and ".join(
        f"dim `{known[n] if known[n] != UNNAMED else n}` over {' x '.join(axes)}"
        for n, axes in lost.items()
    )
    what = f"an array of shape {' x '.join(map(str, shape))}"
    strategy = layout.strategy.name
    if aside is None:
        says = f"this constraint of {what} replicates {dims}, where strategy '{strategy}' shards it"
        repair = "name the dim as the weights that it belongs to do, or leave the constraint out"
    else:
        says = (
            f"this constraint of {what} would replicate {dims}, where strategy '{strategy}' shards "
            "it; jaxpar sets it aside, and code of yours that keeps it gathers the array there"
        )
        repair = "name the axis for that dim, or leave the constraint out"
    return Finding(
        kind="constraint",
        where=file_and_line(line),
        says=says,
        repair=repair,
        source=file_and_line(line),
        module=line.partition("(")[2].rstrip(")"),
        bytes=size,
        is_error=aside is None,
    )
