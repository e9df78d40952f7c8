"""Replicas that train by themselves and average their parameters now and then.

Local SGD (Stich 2019), with any optimizer inside. Each copy takes its own share of every batch, its
own denominator, dropout masks and moments; what is inside a copy is another strategy's to split
(local_sgd+fsdp). After every `every`-th update, and at the end of training, parameters and running
statistics are averaged, each copy counting the same whatever the weight of its rows, and the copies
go on from the average. Moments stay each copy's own.

On the wire over `replica`: nothing in an update; one all-reduce of the parameters, in the pieces
in which they are kept, an averaging.
"""

from jaxpar.strategies.record import ALL_REDUCE, APART, KINDS, Averaging, Strategy


def strategy(every: int = 8, outer_rate: float = 1.0, outer_momentum: float = 0.0) -> Strategy:
    """Return parameter averaging over the replica axis.

    Args:
        every: updates between two averagings; 0 averages only at the end.
        outer_rate, outer_momentum: of the Nesterov step along the averaged change (see `diloco`);
            1 and 0 take the average itself.
    """
    return Strategy(
        name="local_sgd",
        compute={"batch": APART},
        averaging=Averaging(every, outer_rate, outer_momentum),
        must={APART: frozenset({ALL_REDUCE})},
        never={APART: KINDS - {ALL_REDUCE}},
    )
