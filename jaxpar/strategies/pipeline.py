"""Layers in stages on different devices, which pass microbatches from one to the next.

GPipe (Huang et al. 2019) and its kin. Layers are sharded over `pipe`; embedding and head are
replicated, the first used on the first stage, the other on the last or, where its vocabulary is
large, by all stages at once, each with its share of it. Collectives per step: one permute of a
microbatch's activation between neighbours after every tick of the schedule, and one all-reduce over
`pipe` of the gradients of what is replicated; and for each microbatch of which all stages compute
the loss, an all-reduce of the activation and one of its gradient.
"""

from jaxpar.strategies.record import ALL_REDUCE, KINDS, PERMUTE, Stages, Strategy


def strategy(
    schedule: str = "one_f_one_b",
    chunks: int = 0,
    pad: bool = False,
    gather: str = "auto",
    head: str = "auto",
) -> Strategy:
    """Return pipeline parallelism over the pipe axis.

    Args:
        schedule: gpipe, one_f_one_b, interleaved or in_order.
        chunks: pieces of the layers on each stage; 0 is what the schedule is for.
        pad: whether layers that do nothing fill a count that does not divide.
        gather: how often weights stored sharded are gathered: auto, step or microbatch.
        head: which stages compute what comes after the layers: auto, all or last.
    """
    return Strategy(
        name="pipeline",
        compute={"layers": "pipe"},
        stages=Stages(schedule, chunks, pad, gather, head),
        must={"pipe": frozenset({PERMUTE, ALL_REDUCE})},
        never={"pipe": KINDS - {PERMUTE, ALL_REDUCE}},
    )
