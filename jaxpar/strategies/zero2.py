"""Data parallelism with gradients and optimizer state sharded; weights replicated.

ZeRO stage 2 (Rajbhandari et al. 2020). On the wire what `zero1` says: every gradient is
reduce-scattered over `data`, once a microbatch, and the new weights all-gathered once a step. No
device ever holds a whole summed gradient, which `zero1` does while microbatches add up.
"""

from dataclasses import replace

from jaxpar.strategies import zero1
from jaxpar.strategies.record import Strategy


def strategy(whole_below: int = 16_384) -> Strategy:
    """Return data parallelism with cut gradients and moments over the data axis."""
    return replace(
        zero1.strategy(whole_below),
        name="zero2",
        sharded=frozenset({"gradients", "optimizer_state"}),
    )
