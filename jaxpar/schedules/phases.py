"""Where to begin a new loop in a schedule, so that its ticks need few permutes.

Activations go one way round the stages and gradients the other. A permute carries both where every
stage sends at most one message and gets at most one: after every tick, or after every second one
while neighbours do forward and backward passes in turns. A loop's ticks share their permutes, so
ticks with and without a collision are better in loops of their own; each loop is compiled.
"""

from collections.abc import Iterator

from jaxpar.schedules.record import Schedule

Pairs = frozenset[tuple[int, int]]
"""(from stage, to stage) of messages."""

A_LOOP = 0.05
"""What one more loop has to save: permutes, as a share of the ticks."""


def phases(schedule: Schedule) -> tuple[int, ...]:
    """The first tick of each loop: the partition of the ticks with the fewest permutes.

    Each loop more counts as `A_LOOP` of the ticks. By dynamic programming over the ticks at which
    what is sent begins to differ from two ticks before.
    """
    onward, back = _sent(schedule)
    ticks = schedule.ticks
    changes = {t for t in range(2, ticks) if (onward[t], back[t]) != (onward[t - 2], back[t - 2])}
    cuts = sorted({0, ticks, *changes, *(t + 1 for t in changes)} & set(range(ticks + 1)))
    price = max(2.0, A_LOOP * ticks)
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for first in cuts[:-1]:
        so_far, loops = best[first]
        for end, permutes in _permutes(onward, back, first, set(cuts)):
            found = (so_far + price + permutes, (*loops, first))
            best[end] = min(best.get(end, found), found)
    return best[ticks][1]


def _sent(schedule: Schedule) -> tuple[list[Pairs], list[Pairs]]:
    """For each tick the messages after it: activations, and gradients."""
    onward: list[set] = [set() for _ in range(schedule.ticks)]
    back: list[set] = [set() for _ in range(schedule.ticks)]
    for tick, source, target in schedule.sends():
        work = schedule.table[tick][source]
        assert work is not None, (tick, source)
        (onward if work.forward else back)[tick].add((source, target))
    return list(map(frozenset, onward)), list(map(frozenset, back))


def _permutes(
    onward: list[Pairs], back: list[Pairs], first: int, ends: set[int]
) -> Iterator[tuple[int, int]]:
    """(end, permutes) of the loops from `first` to any of `ends`, by turns of one tick or two."""
    # The messages of all ticks so far, and of every second one; how many permutes each tick needs.
    unions = [(frozenset(), frozenset())] * 3
    each = [0] * 3
    for tick in range(first, len(onward)):
        for which in (0, 1 + (tick - first) % 2):
            of, to = unions[which]
            if not (onward[tick] <= of and back[tick] <= to):
                unions[which] = of | onward[tick], to | back[tick]
                each[which] = needed(*unions[which])
        end, count = tick + 1, tick + 1 - first
        if end in ends:
            in_turns = count // 2 * (each[1] + each[2])
            yield end, count * each[0] if count % 2 else min(count * each[0], in_turns)


def needed(onward: Pairs, back: Pairs) -> int:
    """How many permutes carry these messages: 0, 1 or 2."""
    return 1 if fit_one(onward, back) and onward | back else bool(onward) + bool(back)


def fit_one(onward: Pairs, back: Pairs) -> bool:
    """Whether no stage sends two of these messages or gets two."""
    both = onward | back
    return all(len({pair[side] for pair in both}) == len(both) for side in (0, 1))
