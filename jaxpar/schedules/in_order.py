"""One microbatch after another, there and back, one stage busy at a time: the reference.

What a model cut into sub-models does when nothing overlaps: of K stages K - 1 are always idle.
"""

from jaxpar.schedules.record import Schedule, Work, check_counts, one_chunk


def schedule(stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Return the schedule without overlap: 2 M K ticks, a bubble fraction of (K - 1) / K."""
    check_counts("in_order", stages, microbatches, chunks)
    one_chunk("in_order", chunks)
    table = []
    for microbatch in range(microbatches):
        there = [(stage, Work(True, microbatch)) for stage in range(stages)]
        back = [(stage, Work(False, microbatch)) for stage in reversed(range(stages))]
        for busy, work in there + back:
            table.append(tuple(work if stage == busy else None for stage in range(stages)))
    return Schedule("in_order", stages, microbatches, 1, tuple(table))
