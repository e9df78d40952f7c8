"""Numbers gone wrong: a loss that is no finite number, and one that leaps."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.core.errors import RequestError

SEEN = 50
"""Losses that a spike is told by."""

LEAP = 8.0
"""How many times the usual distance from the median a spike is above it."""

MOST_TOLD = 5


class NotFinite(RequestError):
    """A loss, or a parameter, that is infinite or no number.

    Attributes:
        step: the updates done before the one whose loss it is.
    """

    def __init__(self, sentence: str, step: int):
        super().__init__(sentence)
        self.step = step


def check_finite(step: int, metrics: Mapping[str, float], parameters: Mapping[str, Any]) -> None:
    """Refuse a loss that is not finite, with the first parameter that is not.

    Where updates that are not finite are skipped, the loss may be so as long as parameters are not.

    Args:
        step: how many updates were done, the one with this loss included.
        metrics: of that update.
        parameters: path -> array, as they are now.

    Raises:
        NotFinite: with what was found.
    """
    loss = metrics.get("loss", 0.0)
    if math.isfinite(loss):
        return
    path = first_not_finite(parameters)
    if "skipped" in metrics and path is None:
        return
    where = f"the first array that is not finite is '{path}'" if path else "every array is finite"
    raise NotFinite(f"the loss of step {step} is {loss}; {where}", step)


def first_not_finite(arrays: Mapping[str, Any]) -> str | None:
    """The name of the first array with an element that is infinite or no number; None if none has.

    In the order of the names; the arrays may be sharded, over processes too.
    """
    # One after another, as every process does, which meet in each of them.
    names = (name for name in sorted(arrays) if _is_float(arrays[name]))
    return next((n for n in names if not jax.device_get(_all_finite(arrays[n]))), None)


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    """Whether all elements of an array are finite."""
    return jnp.isfinite(x).all()


def _is_float(x: Any) -> bool:
    """Whether an array holds what may be no number."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


class Spikes:
    """The losses seen last, and those among all that leapt above them."""

    def __init__(self):
        """Before the first loss."""
        self.last: deque[float] = deque(maxlen=SEEN)
        self.found: list[tuple[int, float, float]] = []

    def see(self, step: int, loss: float) -> bool:
        """Whether this loss leaps: the median distance from the median, eight times, above it."""
        leaps = False
        if len(self.last) == SEEN and math.isfinite(loss):
            middle = median(self.last)
            usual = median(abs(x - middle) for x in self.last)
            leaps = loss - middle > LEAP * max(usual, 1e-3 * abs(middle))
            if leaps:
                self.found.append((step, loss, middle))
        if math.isfinite(loss):
            self.last.append(loss)
        return leaps

    def notes(self) -> Iterable[str]:
        """A sentence for the first few spikes, and one for how many more there were."""
        for step, loss, middle in self.found[:MOST_TOLD]:
            yield f"the loss leapt to {loss:.4g} at step {step}, where {middle:.4g} was usual"
        if more := len(self.found) - MOST_TOLD:
            if more > 0:
                yield f"the loss leapt at {more} more steps"
