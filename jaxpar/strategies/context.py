"""The sequence over devices, with weights whole: attention exchanges what other devices hold.

Two exchanges: `ring` passes keys and values round (Liu et al. 2023), `ulysses` trades heads for
positions (Jacobs et al. 2023); their files state what they say on the wire. Besides, over `model`,
one all-reduce of every gradient, as data parallelism does over its axis.
"""

from jaxpar.strategies._record import ALL_REDUCE, ALL_TO_ALL, KINDS, PERMUTE, Strategy


def strategy(exchange: str = "ring") -> Strategy:
    """Return context parallelism over the model axis, with `exchange` ring or ulysses."""
    # What an exchange of another name says is not known here.
    said = {"ring": {PERMUTE}, "ulysses": {ALL_TO_ALL}}.get(exchange, set())
    return Strategy(
        name="context",
        compute={"sequence": "model"},
        attend=exchange,
        must={"model": frozenset({ALL_REDUCE, *said})},
        never={"model": KINDS - {ALL_REDUCE, *said} if said else frozenset()},
    )
