"""A function of the rows of a batch, evaluated on each share of them, without sums over devices.

A share is what the devices at one place along some mesh axes have of the rows. XLA's partitioner
sums a gradient over devices as soon as it is made; what is mapped over the shares has them as a
leading dim, and nothing is summed until someone does so. Replicas of local SGD are such shares, and
so is what microbatches accumulate.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import axes_of, entry_of
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.equations import equations
from jaxpar.layout.record import Layout
from jaxpar.step.constraints import constrained


def one_share(layout: Layout, axes: tuple[str, ...]) -> Layout:
    """The layout of one share of the rows along `axes`; its mesh keeps them, unused."""
    strategy = layout.strategy
    compute, between = (
        {role: _without(axes, axes_of(entry)) for role, entry in table.items()}
        for table in (strategy.compute, strategy.between)
    )
    shares = prod(layout.mesh.size(axis) for axis in axes)
    return replace(
        layout,
        model=layout.model.with_batch_size(layout.model.batch_size // shares),
        strategy=replace(strategy, averaging=None, compute=compute, between=between),
        batch={
            name: PartitionSpec(*(entry_of(_without(axes, axes_of(entry))) for entry in spec))
            for name, spec in layout.batch.items()
        },
    )


def _without(axes: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """`others` in their order, less `axes`."""
    return tuple(axis for axis in others if axis not in axes)


def for_each_share(
    layout: Layout, axes: tuple[str, ...], function: Callable, *, by_vmap: bool
) -> Callable[..., Any]:
    """`function(batch, shared, *own)` of one share, for all shares along `axes`.

    Args:
        layout: of the whole batch.
        axes: along which rows are shared out.
        function: gets its rows, `shared` as it is, and of each other tree its own entry.
        by_vmap: map by vmap, else by a shard_map over `axes` alone; see `scatters`.

    Returns:
        A function of the whole batch, `shared`, and trees whose arrays have the shares as their
        leading dim, sharded over `axes`. So have its results.
    """
    return (_by_vmap if by_vmap else _by_shard_map)(layout, axes, function)


def scatters(loss: TracedLoss) -> bool:
    """Whether a loss's gradient adds by index, as an embedding's does, and convolves nothing.

    Under a shard_map over some axes XLA gathers the rows of such a sum over the other axes, where
    it would else add each device's own and all-reduce the table. Mapped convolutions become one
    with groups, for which it gathers the shares (openxla/xla#47945). Both with jaxlib 0.10.2.
    """
    found = {eqn.primitive.name for eqn, _ in equations(loss.closed)}
    return "gather" in found and "conv_general_dilated" not in found


def _by_shard_map(layout: Layout, axes: tuple[str, ...], function: Callable) -> Callable:
    """By a shard_map over `axes` alone, so that no collective can run over them."""
    lead = PartitionSpec(axes)

    def here(batch, shared, *stacked):
        own = jax.tree.map(lambda x: x[0], stacked)
        return jax.tree.map(lambda x: x[None], function(batch, shared, *own))

    def mapped(batch, shared, *stacked):
        return jax.shard_map(
            here,
            mesh=layout.mesh.abstract,
            axis_names=set(axes),
            in_specs=(lead, PartitionSpec(), *[lead] * len(stacked)),
            out_specs=lead,
            check_vma=False,  # what runs on one share does not know these axes
        )(batch, shared, *stacked)

    return mapped


def _by_vmap(layout: Layout, axes: tuple[str, ...], function: Callable) -> Callable:
    """By vmap: sharding constraints inside get `axes` for the new dim."""
    share = one_share(layout, axes)
    shares = layout.model.batch_size // share.model.batch_size

    def mapped(batch, shared, *stacked):
        dealt = {
            name: constrained(
                layout, x.reshape(shares, -1, *x.shape[1:]), PartitionSpec(axes, *share.batch[name])
            )
            for name, x in batch.items()
        }
        own = [0] * len(stacked)
        return jax.vmap(function, (0, None, *own), spmd_axis_name=axes, axis_size=shares)(
            dealt, shared, *stacked
        )

    return mapped
