"""All microbatches forward, then all back: the least bubble of plain schedules, the most memory.

GPipe (Huang et al. 2019).
"""

from jaxpar.schedules.record import Schedule, Work, check_counts, one_chunk


def schedule(stages: int, microbatches: int, chunks: int = 1) -> Schedule:
    """Return GPipe: 2 (M + K - 1) ticks, bubble fraction (K - 1) / (M + K - 1), M in flight."""
    check_counts("gpipe", stages, microbatches, chunks)
    one_chunk("gpipe", chunks)
    half = microbatches + stages - 1

    def row(tick: int, forward: bool) -> tuple[Work | None, ...]:
        # Backward runs from the last stage, with the microbatches in the order they came.
        delays = range(stages) if forward else reversed(range(stages))
        numbers = (tick - delay for delay in delays)
        return tuple(Work(forward, m) if 0 <= m < microbatches else None for m in numbers)

    table = [row(t, True) for t in range(half)] + [row(t, False) for t in range(half)]
    return Schedule("gpipe", stages, microbatches, 1, tuple(table), phases=(0, half))
