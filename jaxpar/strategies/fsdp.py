"""Data parallelism with weights, gradients and optimizer state sharded, all-gathered for use.

ZeRO-3 (Rajbhandari et al. 2020). Collectives per step: every sharded weight all-gathered over
`data` once forward and, for stacked layers, once more backward (weights outside the stack are
kept), and its gradient reduce-scattered (on CPU devices XLA spells that all-reduce and slice). Of a
large table that is only looked up in, rows are exchanged instead (`jaxpar.step.lookups`).
Arrays of fewer than 16,384 elements (64 KiB in float32) stay replicated: a gather that small costs
its latency, not its bytes; the layout lists them.
"""

from jaxpar.strategies.record import (
    ALL_TO_ALL,
    GATHER_ACTIVATIONS,
    GATHER_WEIGHTS,
    PERMUTE,
    Strategy,
)

PREFERENCE = ("residual", "inner", "vocabulary", "heads", "feature")
"""Which dim of a weight is sharded: the one that tensor parallelism leaves alone comes first."""


def strategy(whole_below: int = 16_384) -> Strategy:
    """Return fully sharded data parallelism over the data axis.

    Args:
        whole_below: arrays of fewer elements stay replicated.
    """
    return Strategy(
        name="fsdp",
        compute={"batch": "data"},
        store={"data": PREFERENCE},
        whole_below=whole_below,
        must={"data": frozenset({GATHER_WEIGHTS})},
        never={"data": frozenset({ALL_TO_ALL, PERMUTE, GATHER_ACTIVATIONS})},
    )
