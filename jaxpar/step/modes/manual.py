"""The collectives are written out under shard_map, each placed by `jaxpar.spmd` and not by XLA.

The loss is walked on shards. Differentiating it there gives complete gradients: under shard_map's
type check the transposes bring the sums that backward needs.
"""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of, free_axes, sizes_of
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.stages import runs_in_stages
from jaxpar.spmd import trace
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
        shares = {path: _shares(layout, a, lands) for path, a in layout.parameters.items()}
        arguments = (parameters, model_state, dict(batch), key)
        plan = trace(
            loss_of,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments),
            specs=(stored, state, batches, REPLICATED),
            use_specs=(used, state_used, batches, REPLICATED),
            kept=frozenset(state),
            out_specs=(REPLICATED, REPLICATED, state),
            axis_sizes=sizes_of(layout.mesh),
            place=asked.placement.of,
        )

        def on_shards(parameters, model_state, batch, key):
            def total(parameters):
                loss, metrics, new = plan(parameters, model_state, batch, key)
                return loss.total * asked.factor, ({"loss": loss, **metrics}, new)

            totals, (metrics, new) = jax.grad(total, has_aux=True)(_parted(shares, parameters))
            return _summed(shares, totals), new, metrics

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

    return Differentiated(gradients)


def _parted(shares, parameters):
    """Weights, free to differ between devices where gradients are sharded finer: each device's
    gradient is then its own share, not yet summed."""
    return {
        path: jax.lax.pcast(value, axes, to="varying") if axes else value
        for path, value in parameters.items()
        for axes in [tuple(axis for _, axis in shares[path])]
    }


def _summed(shares, totals):
    """Sum such gradients: scattered first, so that what is summed over the rest is a shard."""
    for path, value in totals.items():
        for dim, axis in shares[path]:
            value = (
                jax.lax.psum(value, axis)
                if dim is None
                else jax.lax.psum_scatter(value, axis, scatter_dimension=dim, tiled=True)
            )
        totals[path] = value
    return totals


def _shares(layout: Layout, array: Array, lands: str) -> list[tuple[int | None, str]]:
    """The axes over which a gradient's shares are summed here, each with the dim it shards or None.

    Those that shard the gradient and not its weight; and after them, if there are any, the others
    that the batch is sharded over. All other gradients are complete as they come.
    """
    finer = sharded_further(array, lands)
    if not finer:
        return []
    taken = {
        axis for spec in (array.stored, getattr(array, lands)) for e in spec for axis in axes_of(e)
    }
    over = {axis for spec in layout.batch.values() for e in spec for axis in axes_of(e)}
    return [*finer, *((None, axis) for axis in layout.mesh.axes if axis in over - taken)]
