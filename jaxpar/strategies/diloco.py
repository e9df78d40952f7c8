"""Replicas that synchronise seldom, by an outer Nesterov step along their average change.

DiLoCo (Douillard et al. 2023): `local_sgd` whose averaging takes not the average itself but a step
of SGD with Nesterov momentum from their last synchronisation, along their average change since.
Rate 0.7 and momentum 0.9 are the paper's; it averages every 500 updates of some ten thousand, which
is more than most runs here last, so that `every` is 50. AdamW's moments stay each replica's own, as
there. The collectives are those of `local_sgd`.
"""

from dataclasses import replace

from jaxpar.strategies import local_sgd
from jaxpar.strategies.record import Strategy


def strategy(every: int = 50, outer_rate: float = 0.7, outer_momentum: float = 0.9) -> Strategy:
    """Return parameter averaging with an outer Nesterov step over the replica axis.

    Args:
        every: updates between two averagings; 0 averages only at the end.
        outer_rate: of the step along the averaged change.
        outer_momentum: of that step; 0 has none.
    """
    return replace(local_sgd.strategy(every, outer_rate, outer_momentum), name="diloco")
