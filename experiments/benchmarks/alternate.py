"""Two steps timed in turn, a few updates at a time, and their ratio round by round.

A machine's speed drifts by more than what is measured here, so times are only compared within a
round.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

STEPS_A_ROUND = 4


def alternate(
    ours: tuple[Callable, Any], theirs: tuple[Callable, Any], batch: Any, rounds: int
) -> dict[str, Any]:
    """Median seconds a step on both sides, and the median ratio with its spread.

    Args:
        ours, theirs: (update, state), where update is (state, batch) -> (state, metrics).
        batch: on the devices.
        rounds: counted ones; one more warms up.
    """
    updates, states = [ours[0], theirs[0]], [ours[1], theirs[1]]
    seconds: list[list[float]] = [[], []]
    for round_number in range(rounds + 1):
        for side in (0, 1):
            started = time.perf_counter()
            for _ in range(STEPS_A_ROUND):
                states[side], metrics = updates[side](states[side], batch)
                jax.block_until_ready((states[side], metrics))
            if round_number:
                seconds[side].append((time.perf_counter() - started) / STEPS_A_ROUND)
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    return {
        "jaxpar_seconds": statistics.median(seconds[0]),
        "other_seconds": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": rounds,
    }
