"""Matrices sharded in pairs, first by columns then by rows, so that a pair sums once.

Megatron pairing (Shoeybi et al. 2019): inner widths, heads and the vocabulary are sharded over
`model`, the residual width is replicated. Collectives per step: two all-reduces of the residual a
block forward and two backward, each batch x sequence x width; never a gathered weight.
"""

from jaxpar.strategies.record import ALL_REDUCE, KINDS, Strategy


def strategy() -> Strategy:
    """Return tensor parallelism over the model axis."""
    return Strategy(
        name="tensor",
        compute={"inner": "model", "heads": "model", "vocabulary": "model"},
        must={"model": frozenset({ALL_REDUCE})},
        never={"model": KINDS - {ALL_REDUCE}},
    )
