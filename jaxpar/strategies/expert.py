"""Experts on different devices, the batch sharded over them too: tokens travel to their experts.

Expert parallelism (Lepikhin et al. 2020) over `model`. Collectives per step: an all-to-all of the
placed tokens to the devices of their experts and one back, in each layer, forward and again
backward, each batch share x experts x places x width; and one all-reduce of the gradients of what
is no expert, since the batch is sharded over `model` too.
"""

from jaxpar.strategies.record import ALL_REDUCE, ALL_TO_ALL, KINDS, Strategy


def strategy() -> Strategy:
    """Return expert parallelism over the model axis."""
    return Strategy(
        name="expert",
        compute={"batch": "model", "experts": "model"},
        needs=frozenset({"experts"}),
        must={"model": frozenset({ALL_TO_ALL, ALL_REDUCE})},
        never={"model": KINDS - {ALL_TO_ALL, ALL_REDUCE}},
    )
