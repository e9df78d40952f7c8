"""Data parallelism with gradients and optimizer state sharded; weights replicated.

ZeRO stage 2 (Rajbhandari et al. 2020). Collectives are those of `zero1`, but every gradient is
reduce-scattered over `data` once a microbatch; the new weights are all-gathered once a step. No
device ever holds a whole summed gradient, which `zero1` does while microbatches add up.
"""

from dataclasses import replace

from jaxpar.strategies import zero1
from jaxpar.strategies.record import Strategy


def strategy(whole_below: int = 16_384) -> Strategy:
    """Return data parallelism with gradients and optimizer state sharded over the data axis.

    Args:
        whole_below: arrays of fewer elements stay replicated.
    """
    return replace(
        zero1.strategy(whole_below),
        name="zero2",
        sharded=frozenset({"gradients", "optimizer_state"}),
    )
