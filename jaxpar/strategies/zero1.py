"""Data parallelism with the optimizer state sharded over the same devices; weights replicated.

ZeRO stage 1 (Rajbhandari et al. 2020). Collectives per step: every gradient reduce-scattered over
`data`, so that each device updates its shard of the weights, and the new weights all-gathered: as
many bytes as the all-reduce of plain data parallelism. Gradients of microbatches add up on each
device and are scattered once a step; in explicit mode each is all-reduced. Arrays of fewer than
16,384 elements stay replicated; the layout lists them.
"""

from jaxpar.strategies.fsdp import PREFERENCE
from jaxpar.strategies.record import (
    ALL_TO_ALL,
    GATHER_ACTIVATIONS,
    GATHER_WEIGHTS,
    PERMUTE,
    Strategy,
)


def strategy(whole_below: int = 16_384) -> Strategy:
    """Return data parallelism with optimizer state sharded over the data axis.

    Args:
        whole_below: arrays of fewer elements stay replicated.
    """
    return Strategy(
        name="zero1",
        compute={"batch": "data"},
        store={"data": PREFERENCE},
        sharded=frozenset({"optimizer_state"}),
        whole_below=whole_below,
        must={"data": frozenset({GATHER_WEIGHTS})},
        never={"data": frozenset({ALL_TO_ALL, PERMUTE, GATHER_ACTIVATIONS})},
    )
