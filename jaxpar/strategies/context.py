"""The sequence sharded over devices, weights replicated: attention exchanges what others have.

Two exchanges: `ring` passes keys and values round (Liu et al. 2023), `ulysses` trades heads for
positions (Jacobs et al. 2023); their files state their collectives. Besides, over `model`, one
all-reduce of every gradient, as data parallelism does over its axis.
"""

from jaxpar.strategies.record import ALL_REDUCE, ALL_TO_ALL, KINDS, PERMUTE, Strategy

KINDS_OF = {
    "ring": frozenset({ALL_REDUCE, PERMUTE}),
    "ulysses": frozenset({ALL_REDUCE, ALL_TO_ALL}),
}
"""Exchange -> its collectives and that of the gradients; of others nothing is known."""


def strategy(exchange: str = "ring") -> Strategy:
    """Return context parallelism over the model axis.

    Args:
        exchange: how devices get at each other's keys and values: ring or ulysses.
    """
    return Strategy(
        name="context",
        compute={"sequence": "model"},
        attend=exchange,
        must={"model": KINDS_OF.get(exchange, frozenset({ALL_REDUCE}))},
        never={"model": KINDS - KINDS_OF.get(exchange, KINDS)},
    )
