"""Data and tensor parallelism at once: the batch over `data`, the matrices over `model`.

On the wire: what `data` says, over `data`, on weights already cut by the model axis; and what
`tensor` says, over `model`, on a batch already cut by the data axis.
"""

from jaxpar.strategies import data, tensor
from jaxpar.strategies.record import Strategy, combine


def strategy() -> Strategy:
    """Return data x tensor parallelism."""
    return combine(data.strategy(), tensor.strategy(), name="hybrid")
