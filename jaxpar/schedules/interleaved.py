"""1F1B with several chunks of layers on each stage: less bubble, at the price of more messages.

Virtual stages (Narayanan et al. 2021, Megatron-LM): with V chunks a stage a microbatch comes by V
times, each pass a V-th as long.
"""

from dataclasses import replace

from jaxpar.core.errors import LayoutError
from jaxpar.schedules.phases import phases
from jaxpar.schedules.record import Schedule, Work, as_soon_as_possible, check_counts


def schedule(stages: int, microbatches: int, chunks: int = 2) -> Schedule:
    """Return interleaved 1F1B: bubble (K - 1) / (V M + K - 1), in ticks a V-th as long.

    Raises:
        LayoutError: when the microbatches are no multiple of the stages: they go round in groups.
    """
    check_counts("interleaved", stages, microbatches, chunks)
    if microbatches % stages:
        near = [n for n in (microbatches // stages * stages, -(-microbatches // stages) * stages)]
        raise LayoutError(
            f"schedule 'interleaved' sends microbatches round in groups of one a stage, and "
            f"{stages} stages do not divide microbatches={microbatches}: use "
            f"{' or '.join(str(n) for n in dict.fromkeys(near) if n)}"
        )
    orders = [_order(stage, stages, microbatches, chunks) for stage in range(stages)]
    made = as_soon_as_possible("interleaved", orders, microbatches=microbatches, chunks=chunks)
    return replace(made, phases=phases(made))


def _order(stage: int, stages: int, microbatches: int, chunks: int) -> list[Work]:
    """A stage's work: forward passes to fill the pipeline, then one and one, then the rest back."""
    total = microbatches * chunks

    def nth(forward: bool, n: int) -> Work:
        group, within = divmod(n, stages * chunks)
        chunk, member = divmod(within, stages)
        return Work(forward, group * stages + member, chunk if forward else chunks - 1 - chunk)

    warmup = min(total, 2 * (stages - 1 - stage) + (chunks - 1) * stages)
    order = [nth(True, n) for n in range(warmup)]
    for n in range(total - warmup):
        order += [nth(True, warmup + n), nth(False, n)]
    return order + [nth(False, n) for n in range(total - warmup, total)]
