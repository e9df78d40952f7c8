"""A step's gradients under shard_map, every collective placed by `jaxpar.manual` and not by XLA.

The loss is traced at its global shapes and walked on shards. Differentiating it there gives
complete
gradients: under shard_map's type check the transposes bring the sums that backward needs.
"""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from jaxpar.layout import Layout
from jaxpar.manual import trace
from jaxpar.mesh import axes_of, free_axes, sizes_of


def differentiate_by_hand(layout: Layout, loss_of: Callable) -> Callable:
    """The gradient function of `loss_of` on shards.

    Args:
        layout: where parameters, state and batch lie.
        loss_of: (parameters, model_state, batch, key) -> (Mean, metrics, model_state), for whole
            arrays.

    Returns:
        (parameters, model_state, batch, key) -> (gradients of the loss's total, model_state,
        {name: Mean}).
    """
    stored = {path: a.stored for path, a in layout.parameters.items()}
    used = {path: a.computed for path, a in layout.parameters.items()}
    state = {path: a.stored for path, a in layout.state.items()}
    batches = dict(layout.batch)
    gradients = {path: a.gradient for path, a in layout.parameters.items()}
    whole = PartitionSpec()

    def differentiate(parameters, model_state, batch, key):
        arguments = (parameters, model_state, batch, key)
        plan = trace(
            loss_of,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments),
            specs=(stored, state, batches, whole),
            use_specs=(used, state, batches, whole),
            out_specs=(whole, whole, state),
            axis_sizes=sizes_of(layout.mesh),
        )

        def on_shards(parameters, model_state, batch, key):
            def total(parameters):
                loss, metrics, new = plan(parameters, model_state, batch, key)
                return loss.total, ({"loss": loss, **metrics}, new)

            totals, (metrics, new) = jax.grad(total, has_aux=True)(_parted(layout, parameters))
            return _scattered(layout, totals), new, metrics

        mesh = layout.mesh.abstract
        return jax.shard_map(
            on_shards,
            mesh=mesh,
            axis_names=free_axes(mesh),
            in_specs=(stored, state, batches, whole),
            out_specs=(gradients, state, whole),
        )(*arguments)

    return differentiate


def _parted(layout: Layout, parameters):
    """Weights that are whole while their gradients are cut: free to differ between devices, so that
    each device's gradient is its own share, not yet summed."""
    return {
        path: jax.lax.pcast(value, axes, to="varying") if axes else value
        for path, value in parameters.items()
        for axes in [tuple(axis for _, axis in _cut_gradients(layout.parameters[path]))]
    }


def _scattered(layout: Layout, totals):
    """Sum such gradients, each device keeping its piece."""
    for path, value in totals.items():
        for dim, axis in _cut_gradients(layout.parameters[path]):
            value = jax.lax.psum_scatter(value, axis, scatter_dimension=dim, tiled=True)
        totals[path] = value
    return totals


def _cut_gradients(array) -> list[tuple[int, str]]:
    """The dims, and the axes over them, along which a gradient is cut and its weight is not."""
    pairs = zip(array.gradient, array.stored, strict=True)
    return [
        (dim, axis)
        for dim, (fine, coarse) in enumerate(pairs)
        for axis in axes_of(fine)
        if axis not in axes_of(coarse)
    ]
