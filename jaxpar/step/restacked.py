"""A stack of layers moved to the order in which stages store it, each device its own layers only.

A stack is created in the order of the network, sharded over the stages. Taken apart by an index XLA
would create all of it on every device. So blocks of layers travel instead: in each round every
device sends one block and gets one.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import free_axes
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS, chunks_of, stages_of
from jaxpar.step.constraints import constrained

Round = Sequence[tuple[int, int, int]]
"""For each device: which device it gets a block from, that one's number there, and its own here."""


def restacked(layout: Layout, path: str, value: jax.Array) -> jax.Array:
    """A parameter as the layout stores it, given in the order of the network's layers."""
    order = layout.order_of(path)
    return value if order is None else _moved(layout, order, layout.parameters[path].stored, value)


def in_own_order(
    layout: Layout, path: str, value: jax.Array, spec: PartitionSpec, lead: int = 0
) -> jax.Array:
    """A stack stored for a parameter, or what mirrors it, in the order of the network's layers.

    Args:
        layout, path: of which parameter.
        value: as the layout stores it.
        spec: how it is sharded.
        lead: dims before that of the layers.
    """
    order = layout.order_of(path)
    if order is None:
        return value
    back = tuple(np.argsort(order).tolist())
    return jnp.take(value, np.array(back), axis=lead) if lead else _moved(layout, back, spec, value)


def in_stored_order(
    layout: Layout, path: str, value: jax.Array, spec: PartitionSpec, lead: int = 0
) -> jax.Array:
    """The way back from `in_own_order`."""
    order = layout.order_of(path)
    if order is None:
        return value
    return (
        jnp.take(value, np.array(order), axis=lead) if lead else _moved(layout, order, spec, value)
    )


def _moved(
    layout: Layout, order: Sequence[int], spec: PartitionSpec, value: jax.Array
) -> jax.Array:
    """A stack with the layer `order[place]` at each place, sharded over stages before and after."""
    devices = layout.mesh.size(AXIS)
    chunks = chunks_of(stages_of(layout.strategy))
    each = len(order) // (devices * chunks)
    plan = rounds([first // each for first in order[::each]], devices)

    def travel(mine: jax.Array) -> jax.Array:
        here, arrived = lax.axis_index(AXIS), []
        for one in plan:
            leaving = {source: block for source, block, _ in one}
            sent = jnp.asarray([leaving[device] for device in range(devices)])[here]
            block = lax.dynamic_slice_in_dim(mine, sent * each, each)
            pairs = [(source, to) for to, (source, _, _) in enumerate(one)]
            arrived.append(lax.ppermute(block, AXIS, pairs))
        places = [[one[device][2] for one in plan] for device in range(devices)]
        when = jnp.asarray([[own.index(p) for p in range(chunks)] for own in places])[here]
        # Picked and joined rather than written one by one: XLA would keep another copy for that.
        return jnp.concatenate([lax.select_n(when[p], *arrived) for p in range(chunks)])

    mesh = layout.mesh.abstract
    everywhere = jax.shard_map(
        travel, mesh=mesh, axis_names=free_axes(mesh), in_specs=spec, out_specs=spec
    )
    return everywhere(constrained(layout, value, spec))


def rounds(order: Sequence[int], devices: int) -> list[Round]:
    """In which rounds blocks travel, so that in each every device sends one and gets one.

    As many as a device has blocks, which is the fewest. (There always are so many by König's
    theorem of 1916: a regular bipartite graph is made of perfect matchings.)

    Args:
        order: the block that is to be at each place, devices having as many places each.
        devices: among which the blocks 0, 1, 2, ... are shared out in this order before.

    >>> rounds([0, 2, 1, 3], 2)
    [[(0, 0, 0), (1, 1, 1)], [(1, 0, 1), (0, 1, 0)]]
    """
    # Here, since it takes a quarter of a second to import, and few layouts have rounds.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    each = len(order) // devices
    left: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, block in enumerate(order):
        ends = (block // each, place // each)
        left.setdefault(ends, []).append((block % each, place % each))
    found = []
    for _ in range(each):
        there = np.zeros((devices, devices), bool)
        for ends, moves in left.items():
            there[ends] = bool(moves)
        sources = maximum_bipartite_matching(csr_array(there), perm_type="row").tolist()
        found.append([(source, *left[source, to].pop(0)) for to, source in enumerate(sources)])
    return found
