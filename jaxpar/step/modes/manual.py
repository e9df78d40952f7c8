"""The collectives are written out under shard_map, each placed by `jaxpar.spmd` and not by XLA.

The loss is walked on shards. Differentiating it there gives complete gradients: under shard_map's
type check the transposes bring the sums that backward needs. With several microbatches each device
accumulates what its own rows add to a gradient, which is summed over devices once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of, free_axes, sizes_of
from jaxpar.core.varying import as_varying
from jaxpar.layout.record import Array
from jaxpar.layout.stages import runs_in_stages
from jaxpar.spmd import trace
from jaxpar.step.accumulate import accumulated
from jaxpar.step.constraints import sharded_further
from jaxpar.step.filled import Annotated, filled_loss
from jaxpar.step.modes import pipeline
from jaxpar.step.modes.record import Asked, Differentiated

REPLICATED = PartitionSpec()


def mode(asked: Asked) -> Differentiated:
    """The loss differentiated under shard_map, its collectives written out."""
    if runs_in_stages(asked.layout.strategy, asked.layout.mesh):
        return pipeline.mode(asked)
    layout = asked.microbatch
    stored = {path: a.stored for path, a in layout.parameters.items()}
    used = {path: a.used for path, a in layout.parameters.items()}
    state = {path: a.stored for path, a in layout.state.items()}
    state_used = {path: a.used for path, a in layout.state.items()}
    batches = dict(layout.batch)

    def gradients(lands, parameters, model_state, batch, key):
        loss_of = filled_loss(layout, asked.loss, lambda: Annotated(layout.attention.unmapped))
        shares = {path: _shares(asked, a, lands) for path, a in layout.parameters.items()}
        arguments = (parameters, model_state, dict(batch), key)
        rows = {name: _rows(x, asked.microbatches) for name, x in batch.items()}
        plan = trace(
            loss_of,
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
                (parameters, model_state, rows, key),
            ),
            specs=(stored, state, batches, REPLICATED),
            use_specs=(used, state_used, batches, REPLICATED),
            kept=frozenset(state),
            out_specs=(REPLICATED, REPLICATED, state),
            axis_sizes=sizes_of(layout.mesh),
            place=asked.placement.of,
        )

        def one(parameters, model_state, batch, key):
            def total(parameters):
                loss, metrics, new = plan(parameters, model_state, batch, key)
                return loss.total * asked.factor, ({"loss": loss, **metrics}, new)

            totals, (metrics, new) = jax.grad(total, has_aux=True)(parameters)
            return {p: _scattered(shares[p].each, x) for p, x in totals.items()}, new, metrics

        def on_shards(parameters, model_state, batch, key):
            arguments = (_parted(shares, parameters), model_state, batch, key)
            if asked.microbatches > 1:
                totals, new, metrics = accumulated(one, asked.microbatches, *arguments)
            else:
                totals, new, metrics = one(*arguments)
            return {p: _summed(shares[p], x) for p, x in totals.items()}, new, metrics

        mesh = layout.mesh.abstract
        return jax.shard_map(
            on_shards,
            mesh=mesh,
            axis_names=free_axes(mesh),
            in_specs=(stored, state, batches, REPLICATED),
            out_specs=(
                {path: getattr(a, lands) for path, a in layout.parameters.items()},
                state,
                REPLICATED,
            ),
        )(*arguments)

    return Differentiated(gradients, takes_all=True)


@dataclass(frozen=True)
class _Shares:
    """The axes over which a gradient's shares, one of each device, are summed by hand.

    Attributes:
        each: (dim, axis) along which the share of every microbatch is scattered.
        after: (dim, axis) along which what was accumulated is scattered.
        over: axes over which the rest is then summed.
    """

    each: tuple[tuple[int, str], ...] = ()
    after: tuple[tuple[int, str], ...] = ()
    over: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(axis for _, axis in (*self.each, *self.after)) + self.over


def _shares(asked: Asked, array: Array, lands: str) -> _Shares:
    """Where a gradient's shares are summed by hand; elsewhere gradients are complete as they come.

    With one microbatch that is where the gradient is sharded finer than its weight. With several it
    is every axis of the rows along which the weight is replicated: the shares are accumulated, but
    scattered at once where the layout keeps gradients sharded.
    """
    layout, several = asked.layout, asked.microbatches > 1
    each = sharded_further(array, "gradient") if several else []
    after = [pair for pair in sharded_further(array, lands) if pair not in each]
    if not (several or after):
        return _Shares()
    taken = {
        axis for spec in (array.stored, getattr(array, lands)) for e in spec for axis in axes_of(e)
    }
    rows = {axis for spec in layout.batch.values() for e in spec for axis in axes_of(e)}
    over = tuple(axis for axis in layout.mesh.axes if axis in rows - taken)
    return _Shares(tuple(each), tuple(after), over)


def _rows(array, microbatches: int) -> jax.ShapeDtypeStruct:
    """What one microbatch has of a field of the batch."""
    return jax.ShapeDtypeStruct((array.shape[0] // microbatches, *array.shape[1:]), array.dtype)


def _parted(shares, parameters):
    """Weights, free to differ between the devices whose gradients are shares: each device's
    gradient is then its own share, not yet summed."""
    return {path: as_varying(value, shares[path].axes) for path, value in parameters.items()}


def _scattered(pairs, value):
    """A share, summed and scattered along dims over axes."""
    for dim, axis in pairs:
        value = jax.lax.psum_scatter(value, axis, scatter_dimension=dim, tiled=True)
    return value


def _summed(shares: _Shares, value):
    """The sum of accumulated shares: scattered first, so that what is summed is a shard."""
    value = _scattered(shares.after, value)
    return jax.lax.psum(value, shares.over) if shares.over else value
