"""The Fault record: a partial sum that a program does not reduce as it should."""

from dataclasses import dataclass

from jaxpar.hlo.parse import Instruction


@dataclass(frozen=True)
class Fault:
    """A partial sum that is not reduced as it should be.

    Attributes:
        kind: "not reduced", "added too early", "handed out", "summed twice" or "wrong group".
        axis: the mesh axis.
        dims: the dims over which the sum runs, as far as they are named.
        made: the instruction that made the partial sum, or that was summed already.
        used: the instruction at fault.
        result: which result of the program it is handed out as; -1 for the other kinds.
    """

    kind: str
    axis: str
    dims: tuple[str, ...]
    made: Instruction
    used: Instruction
    result: int = -1


NONLINEAR = frozenset(
    "abs sqrt rsqrt cbrt power maximum minimum clamp exponential exponential-minus-one log "
    "log-plus-one tanh logistic sine cosine tan erf".split()
)
"""Operations of which a partial sum must not be given, wherever its parts are summed later."""

PRODUCTS = ("multiply", "divide", "dot")
"""Operations of which the factors must not be partial sums over an axis that shards the other."""
