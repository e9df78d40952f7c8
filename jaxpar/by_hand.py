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
from jaxpar.mesh import sizes_of


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

            totals, (metrics, new) = jax.grad(total, has_aux=True)(parameters)
            return totals, new, metrics

        return jax.shard_map(
            on_shards,
            mesh=layout.mesh.abstract,
            in_specs=(stored, state, batches, whole),
            out_specs=(stored, state, whole),
        )(*arguments)

    return differentiate
