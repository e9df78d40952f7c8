"""The parts of a loss planned on shards, for one microbatch: what the walk of a pipeline runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import sizes_of
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS
from jaxpar.spmd import Plan, trace
from jaxpar.step.pipeline.gathered import Gathering
from jaxpar.step.pipeline.head import cut_further, cuts_of
from jaxpar.step.pipeline.head import place as place_shared
from jaxpar.step.pipeline.parts import Parts
from jaxpar.step.placement import sharded

REPLICATED = PartitionSpec()


@dataclass(frozen=True)
class Plans:
    """The parts of a loss, ready to run on shards; `shared` is `after` as all stages compute it,
    each with its share of the weights in `cuts`, which are by path the dims that are cut."""

    parts: Parts
    gathering: Gathering
    before: Plan
    aside: Plan
    layer: Plan
    after: Plan
    cuts: Mapping[str, int]
    shared: Plan | None


def plans_of(
    layout: Layout, parts: Parts, gathering: Gathering, parameters, batch, key, count: int
) -> Plans:
    """Trace the parts of the loss at the global shapes of one of `count` microbatches; they ignore
    the stages."""
    if key is not None:
        key = jax.ShapeDtypeStruct(key.shape, key.dtype)
    arrays = {p: a for p, a in layout.parameters.items() if p not in parts.layer_paths}
    layers = {p: layout.parameters[p] for p in parts.layer_paths}
    rest = {p: parameters[p] for p in arrays}
    weights = {p: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for p, a in layers.items()}
    stored = {p: gathering.spec(p) for p in arrays}
    used = {p: a.used for p, a in arrays.items()}
    batches = dict(layout.batch)
    # A microbatch may have too few rows for what the whole batch has enough of.
    small = layout.with_rows(layout.model.batch_size // count)
    place = partial(sharded, small)
    x = [
        place(names, tuple(a.shape)).between
        for names, a in zip(parts.names, parts.activation, strict=True)
    ]

    def traced(fn, args, specs, uses, out=None):
        return trace(
            fn,
            args,
            specs=specs,
            use_specs=uses,
            out_specs=out,
            axis_sizes=sizes_of(layout.mesh),
            ignored=(AXIS,),
            place=place,
        )

    inputs, specs, uses = (
        (rest, batch, key),
        (stored, batches, REPLICATED),
        (used, batches, REPLICATED),
    )
    aside = traced(lambda *a: parts.aside(*a), inputs, specs, uses)
    one = [
        (jax.ShapeDtypeStruct(s.shape[1:], s.dtype), PartitionSpec(*spec[1:]))
        if i < parts.stacked_asides
        else (s, spec)
        for i, (s, spec) in enumerate(zip(parts.asides, aside.out_specs, strict=True))
    ]
    beside, beside_specs = [s for s, _ in one], [spec for _, spec in one]
    layer = traced(
        parts.layer,
        (weights, beside, parts.activation),
        ({p: PartitionSpec(*gathering.spec(p)[1:]) for p in layers}, beside_specs, x),
        ({p: PartitionSpec(*a.used[1:]) for p, a in layers.items()}, beside_specs, x),
        out=x,
    )
    after = traced(
        parts.after,
        (rest, parts.activation, batch, key),
        (stored, x, batches, REPLICATED),
        (used, x, batches, REPLICATED),
        out=REPLICATED,
    )
    before = traced(parts.before, inputs, specs, uses, out=x)
    cuts, shared = cuts_of(small, parts, gathering), None
    if cuts:
        stored, used = (
            {p: cut_further(spec, cuts.get(p)) for p, spec in own.items()} for own in (stored, used)
        )
        shared = trace(
            parts.after,
            (rest, parts.activation, batch, key),
            specs=(stored, x, batches, REPLICATED),
            use_specs=(used, x, batches, REPLICATED),
            out_specs=REPLICATED,
            axis_sizes=sizes_of(layout.mesh),
            place=partial(place_shared, small),
        )
    return Plans(parts, gathering, before, aside, layer, after, cuts, shared)
