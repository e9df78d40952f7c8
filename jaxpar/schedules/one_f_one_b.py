"""Each stage takes forward and backward passes in turn, so that few microbatches are in flight.

1F1B (PipeDream-Flush, Narayanan et al. 2021): the bubble of GPipe, and on stage p only
min(M, K - p) microbatches in flight where GPipe has M.
"""

from jaxpar.schedules.record import Schedule, Work, check_counts, one_chunk


def schedule(stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Return 1F1B: 2 (M + K - 1) ticks, bubble (K - 1) / (M + K - 1), at most K in flight.

    Stage p does the forward pass of microbatch m in tick p + 2 m and its backward pass in tick
    2 K - 1 - p + 2 m. Neighbours so do the one and the other at any time, and each exchange between
    them carries an activation one way and a gradient the other.
    """
    check_counts("one_f_one_b", stages, microbatches, chunks)
    one_chunk("one_f_one_b", chunks)

    def work(tick: int, stage: int) -> Work | None:
        forward = (tick - stage) % 2 == 0
        microbatch = (tick - stage if forward else tick - (2 * stages - 1 - stage)) // 2
        return Work(forward, microbatch) if 0 <= microbatch < microbatches else None

    table = [
        tuple(work(tick, stage) for stage in range(stages))
        for tick in range(2 * (microbatches + stages - 1))
    ]
    return Schedule("one_f_one_b", stages, microbatches, 1, tuple(table))
