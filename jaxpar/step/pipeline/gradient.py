"""A step's gradients, or its evaluation, with the layers in stages: the shard_map around the walk.

Weights are made to differ between the devices that share a batch (or hold the same weight for
different stages), so that each adds up its own share over all microbatches; the shares are summed
once, at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of
from jaxpar.core.varying import varying
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS
from jaxpar.models.record import Mean
from jaxpar.schedules.record import Schedule
from jaxpar.step.constraints import sharded_further
from jaxpar.step.pipeline.buffers import vary
from jaxpar.step.pipeline.chunked import chunked, unchunked
from jaxpar.step.pipeline.gathered import Gathering
from jaxpar.step.pipeline.head import share
from jaxpar.step.pipeline.parts import Parts
from jaxpar.step.pipeline.piece import Piece, remembering
from jaxpar.step.pipeline.plans import Plans, plans_of
from jaxpar.step.pipeline.timetable import timetable
from jaxpar.step.pipeline.walk import walk
from jaxpar.step.pipeline.work import Local, Shared

REPLICATED = PartitionSpec()


def staged(
    layout: Layout,
    parts: Parts,
    schedule: Schedule,
    factor: float = 1.0,
    *,
    gathering: Gathering,
    fill: float = 0.0,
) -> Callable:
    """The gradient function of a loss whose layers run in stages.

    Args:
        layout: how parameters and batch are sharded; its strategy has `stages`.
        parts: the loss of one microbatch, taken apart.
        schedule: who does what when, for as many microbatches as the batch is split into.
        factor: what the loss's total is multiplied by before it is differentiated.
        gathering: when weights that are stored sharded are gathered.
        fill: what idle stages send, for tests: no result may depend on it.

    Returns:
        (lands, parameters, model_state, batch, key) -> (gradients of the total x factor,
        model_state, {name: Mean}), of the whole batch. They are sharded as the attribute `lands`
        of the layout's arrays says; `bubble` among the means is the share of idle ticks, as counted
        while they passed.
    """
    table = timetable(schedule)

    def on_shards(lands, plans, parameters, microbatches, key):
        apart = _apart(layout, plans)
        parted = {p: vary(v, apart) for p, v in parameters.items()}
        local = _local(layout, plans, schedule, parted, microbatches, key)
        if plans.shared is not None:
            alike = {p: vary(v, apart - {AXIS}) for p, v in parameters.items()}
            local = replace(local, shared=_shared(plans, schedule, local, alike))
        buffers = walk(
            local,
            table,
            factor=factor,
            fill=fill,
        )
        layers = {p: unchunked(g, schedule, parameters[p]) for p, g in buffers.layers.items()}
        totals = {p: gathering.scattered(p, x) for p, x in {**buffers.rest, **layers}.items()}
        totals = {
            p: _summed(sharded_further(a, lands), totals[p], parameters[p])
            for p, a in layout.parameters.items()
        }
        return totals, _gathered(buffers, schedule)

    def differentiate(lands, parameters, model_state, batch, key):
        specs = {path: getattr(a, lands) for path, a in layout.parameters.items()}
        run = partial(on_shards, lands)
        out_specs = (specs, REPLICATED)
        arguments = (parameters, batch, key)
        totals, means = _on_mesh(layout, parts, schedule, gathering, run, out_specs, *arguments)
        return totals, model_state, means

    return differentiate


def evaluate_in_stages(
    layout: Layout, parts: Parts, schedule: Schedule, gathering: Gathering
) -> Callable:
    """(parameters, batch) -> {name: Mean}, by the forward passes of a schedule alone.

    Args:
        layout, schedule, gathering: as for `staged`.
        parts: the loss of one microbatch in evaluation, taken apart.
    """
    schedule = schedule.forward_only()
    table = timetable(schedule)

    def on_shards(plans, parameters, microbatches, key):
        local = _local(layout, plans, schedule, parameters, microbatches, key)
        return _gathered(walk(local, table), schedule)

    def evaluate(parameters, batch):
        how = (layout, parts, schedule, gathering)
        return _on_mesh(*how, on_shards, REPLICATED, parameters, batch, None)

    return evaluate


def _on_mesh(layout, parts, schedule, gathering, on_shards, out_specs, parameters, batch, key):
    """Split the batch into microbatches and run `on_shards` under shard_map."""
    count = schedule.microbatches
    # Microbatch m takes every count-th row: contiguous rows would move between devices.
    microbatches = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), dict(batch)
    )
    one = {n: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for n, x in microbatches.items()}
    abstract = {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in parameters.items()}
    plans = plans_of(layout, parts, gathering, abstract, one, key, count)
    keys = () if key is None else (key,)
    return jax.shard_map(
        lambda parameters, batch, *key: on_shards(plans, parameters, batch, *(key or (None,))),
        mesh=layout.mesh.abstract,
        in_specs=(
            {path: a.stored for path, a in layout.parameters.items()},
            {name: PartitionSpec(None, *spec) for name, spec in layout.batch.items()},
            *(REPLICATED for _ in keys),
        ),
        out_specs=out_specs,
    )(parameters, microbatches, *keys)


def _local(layout, plans: Plans, schedule: Schedule, parameters, microbatches, key) -> Local:
    """The loss on this device, for `walk`: its parts, its layers, its rows of each microbatch."""
    parts, wide = plans.parts, plans.gathering.wide
    weights = plans.gathering.gathered(parameters)

    def key_of(m):
        if key is None or schedule.microbatches == 1:
            return key
        return jax.random.fold_in(key, m)

    def before(rest, *arguments):
        # What is nothing yet (a sum over layers) is the same everywhere until the first layer.
        entering = plans.before(wide(rest), *arguments)
        specs = jax.tree.leaves(plans.before.out_specs, is_leaf=_is_spec)
        leaves, tree = jax.tree.flatten(entering)
        axes = ({AXIS, *(a for entry in spec for a in axes_of(entry))} for spec in specs)
        return jax.tree.unflatten(tree, map(vary, leaves, axes))

    return Local(
        before=before,
        aside=lambda rest, *given: plans.aside(wide(rest), *given),
        after=lambda rest, *given: plans.after(wide(rest), *given),
        piece=Piece(remembering(lambda own, *x: plans.layer(wide(own), *x), parts.remat)),
        rest={p: v for p, v in weights.items() if p not in parts.layer_paths},
        layers={
            p: chunked(weights[p], schedule, layout.parameters[p].shape[0])
            for p in parts.layer_paths
        },
        dtypes={path: a.dtype for path, a in layout.parameters.items()},
        count=layout.parameters[parts.layer_paths[0]].shape[0],
        stacked_asides=parts.stacked_asides,
        pieces=schedule.pieces,
        stages=schedule.stages,
        batch_of=lambda m: jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, m, 0, keepdims=False), microbatches
        ),
        key_of=key_of,
    )


def _shared(plans: Plans, schedule: Schedule, local: Local, alike) -> Shared:
    """What all stages compute after the layers; `alike` are the parameters, equal on all stages."""
    shared, wide = plans.shared, plans.gathering.wide
    assert shared is not None
    used = {p: v for p, v in alike.items() if p in local.rest and p not in plans.cuts}
    cut = {p: share(local.rest[p], dim, schedule.stages) for p, dim in plans.cuts.items()}
    return Shared(
        after=lambda rest, *given: shared(wide(rest), *given),
        rest={**plans.gathering.gathered(used), **cut},
        cuts=plans.cuts,
    )


def _is_spec(node) -> bool:
    """Whether a tree's node is a PartitionSpec."""
    return isinstance(node, PartitionSpec)


def _apart(layout: Layout, plans: Plans) -> frozenset[str]:
    """Along which axes devices add up shares of a gradient of their own: those that shard the
    activation's rows and positions, and the stages."""
    entries = [entry for names in plans.parts.names for entry in layout.place_of(names)]
    return frozenset({AXIS, *(axis for entry in entries for axis in axes_of(entry))})


def _summed(finer: list[tuple[int, str]], share: jax.Array, parameter: jax.Array) -> jax.Array:
    """Sum the shares of a gradient over the axes along which its parameter does not differ."""
    axes = varying(share) - varying(parameter)
    for dim, axis in finer:
        share = lax.psum_scatter(share, axis, scatter_dimension=dim, tiled=True)
        axes -= {axis}
    return lax.psum(share, tuple(sorted(axes))) if axes else share


def _gathered(buffers, schedule: Schedule) -> Mapping[str, Any]:
    """The means that the last stage has taken, and the idle ticks of all, on every device."""
    means = {
        **buffers.means,
        "bubble": Mean(buffers.idle, jnp.full_like(buffers.idle, schedule.ticks)),
    }
    return jax.tree.map(lambda x: lax.psum(x, AXIS), means)
