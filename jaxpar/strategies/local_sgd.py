"""Replicas that train by themselves and average their parameters now and then.

Local SGD (Stich 2019), with any optimizer inside. Each replica takes its own share of every batch,
its own denominator, dropout masks and optimizer state; another strategy may shard what is inside a
replica (local_sgd+fsdp). After every `every`-th update, and at the end of training, parameters and
running statistics are averaged, each replica counting the same whatever the weight of its rows, and
replicas go on from the average. Optimizer state stays each replica's own.

Collectives over `replica`: none in an update; in a synchronisation one all-reduce of the
parameters, each device its own shards.
"""

from jaxpar.strategies.record import ALL_REDUCE, KINDS, REPLICA, Averaging, Strategy


def strategy(every: int = 8, outer_rate: float = 1.0, outer_momentum: float = 0.0) -> Strategy:
    """Return parameter averaging over the replica axis.

    Args:
        every: updates between two averagings; 0 averages only at the end.
        outer_rate: of the Nesterov step along the averaged change (see `diloco`); 1 takes the
            average itself.
        outer_momentum: of that step; 0 has none.
    """
    return Strategy(
        name="local_sgd",
        compute={"batch": REPLICA},
        averaging=Averaging(every, outer_rate, outer_momentum),
        must={REPLICA: frozenset({ALL_REDUCE})},
        never={REPLICA: KINDS - {ALL_REDUCE}},
    )
