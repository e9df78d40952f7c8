"""Replicas of what is sharded inside: the batch over `replica`, gradients summed by all-reduce.

Alone it is data parallelism over another axis; it is meant beside one, as in replica+fsdp, where
weights are sharded over `data` inside a node and replicated across nodes (hybrid sharding).
Collectives per step over `replica`: an all-reduce of every gradient. Manual mode scatters over
`data` first, and sums over `replica` the shard of each device. In auto mode XLA sums whole
gradients over both axes in one all-reduce and then slices (jax 0.10.2), which sends more between
nodes.
"""

from jaxpar.strategies.record import ALL_REDUCE, KINDS, Strategy


def strategy() -> Strategy:
    """Return data parallelism over the replica axis."""
    return Strategy(
        name="replica",
        compute={"batch": "replica"},
        must={"replica": frozenset({ALL_REDUCE})},
        never={"replica": KINDS - {ALL_REDUCE}},
    )
