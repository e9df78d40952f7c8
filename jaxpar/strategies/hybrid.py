"""Data and tensor parallelism at once: the batch over `data`, the matrices over `model`.

Collectives: over `data` those of `data`, of weights already sharded over `model`; and over `model`
those of `tensor`, on a batch already sharded over `data`.
"""

from jaxpar.strategies import data, tensor
from jaxpar.strategies.record import Strategy, combine


def strategy() -> Strategy:
    """Return data x tensor parallelism."""
    return combine(data.strategy(), tensor.strategy(), name="hybrid")
