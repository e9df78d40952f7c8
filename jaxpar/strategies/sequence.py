"""Tensor parallelism with the residual between the parts of a block sharded too.

Sequence parallelism (Korthikanti et al. 2022). Norms, dropout and additions work on a shard of the
rows where these divide over all devices, and else of the sequence; what is kept of them for
backward is sharded. Each all-reduce of tensor parallelism becomes a
reduce-scatter and an all-gather, each counted with as many bytes, and they move together what it
moved alone (XLA for CPUs spells the former all-reduce and slice). The norms' scales,
replicated, gain an all-reduce of their gradients: a vector of the width each.
"""

from dataclasses import replace

from jaxpar.strategies import tensor
from jaxpar.strategies.record import (
    ALL_REDUCE,
    ALL_TO_ALL,
    GATHER_ACTIVATIONS,
    GATHER_WEIGHTS,
    PERMUTE,
    Strategy,
)


def strategy() -> Strategy:
    """Return tensor parallelism over the model axis with a split residual."""
    return replace(
        tensor.strategy(),
        name="sequence",
        between={"sequence": "model"},
        must={"model": frozenset({GATHER_ACTIVATIONS, ALL_REDUCE})},
        never={"model": frozenset({ALL_TO_ALL, PERMUTE, GATHER_WEIGHTS})},
    )
