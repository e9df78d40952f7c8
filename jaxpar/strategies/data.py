"""The batch sharded over devices, weights replicated, gradients summed by all-reduce.

Collectives, once a step: one all-reduce of every gradient over `data`, so as many bytes as the
parameters have, and of a few scalars (the loss and its weight). Gradients of microbatches add up on
each device first; see `jaxpar.step.summed_once` for what auto mode sums more often.
"""

from jaxpar.strategies.record import ALL_REDUCE, KINDS, Strategy


def strategy() -> Strategy:
    """Return data parallelism over the data axis."""
    return Strategy(
        name="data",
        compute={"batch": "data"},
        must={"data": frozenset({ALL_REDUCE})},
        never={"data": KINDS - {ALL_REDUCE}},
    )
