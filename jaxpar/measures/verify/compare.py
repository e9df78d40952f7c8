"""How far arrays under a layout are from one device's: the worst array, on its worst replica.

Every device's own shard is looked at: the view of a whole array shows one replica of each.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np

FLOOR = 1e-3
"""An array's error is relative to its own norm plus this share of the norm of all arrays together,
so that a gradient whose true value is zero (a key bias) is not judged by its rounding."""

HONEST = 30
"""How many times its own rounding one device may be missed by: other sums are other roundings."""

MOST = 1e-3
"""What no bound is widened beyond: the smallest classic mistake is 1.8e-3 of a gradient."""

MOST_OF_A_STATE = 0.3
"""The same for a state after some steps: a rule that takes a sign makes whole steps of rounding.
Gradients, and the update from the same ones, are judged by the bound above."""


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: "initial state", "gradient", "update", "loss" or "state after n steps".
        arrays: how many arrays were compared, each on every device that has a shard of it.
        worst: path of the array with the largest error.
        error, bound: relative error of that array, and what is accepted.
        replicas_agree: whether devices that should hold equal shards do.
        own_rounding: the same error between one device and itself with its inputs changed in their
            last digit, where that had to be measured and `bound` was widened for it; else 0.
    """

    name: str
    arrays: int
    worst: str
    error: float
    bound: float
    replicas_agree: bool = True
    own_rounding: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound; a NaN is not."""
        return bool(self.error <= self.bound)


def relative(got, right) -> float:
    """The relative error of a scalar, or of the worst of several."""
    got, right = np.asarray(got), np.asarray(right)
    return float(np.max(np.abs(got - right) / np.maximum(np.abs(right), 1e-30)))


def compare(
    name, right, got, bound, *, norms=None, own: Mapping[str, float] | None = None, most=MOST
) -> Check:
    """The worst relative error of any array, every device's own shard looked at, as a Check.

    Args:
        name: of the check.
        right, got: arrays by path; `right` in host memory.
        bound: largest relative error accepted.
        norms: arrays by path whose norms errors are relative to; `right` if None.
        own: path -> rounding that one device has by itself, for which the bound is widened.
        most: what no bound is widened beyond.
    """
    scales = _scales(right if norms is None else norms)
    worst, agree, own = None, True, own or {}
    for path in right:
        gap, spread = _gap(np.asarray(right[path]), got[path])
        error = gap / scales[path] if scales[path] else gap
        allowed = max(bound, min(HONEST * own.get(path, 0.0), most))
        agree &= spread <= allowed * max(scales[path], 1e-300)
        widened = own.get(path, 0.0) if allowed > bound else 0.0
        found = Check(name, len(right), path, error, allowed, True, widened)
        # A NaN is the worst error there is, and comparisons with it are false.
        if worst is None or np.isnan(error) or error / allowed > worst.error / worst.bound:
            worst = found
            if np.isnan(error):
                break
    assert worst is not None, name
    return replace(worst, replicas_agree=agree)


def errors_of(right, got, norms=None) -> dict[str, float]:
    """The relative error of every array, both sides in host memory."""
    scales = _scales(right if norms is None else norms)
    gaps = {path: _gap(np.asarray(right[path]), np.asarray(got[path]))[0] for path in right}
    return {path: gap / scales[path] if scales[path] else gap for path, gap in gaps.items()}


def _scales(arrays) -> dict[str, float]:
    """What the error of each array is relative to."""
    size = {p: _norm(_wide(x)) for p, x in arrays.items()}
    # Moments and parameters differ in size by orders: the floor is taken within each family.
    families: dict[str, float] = {}
    for p, s in size.items():
        families[_family(p)] = float(np.hypot(families.get(_family(p), 0.0), s))
    return {p: s + FLOOR * families[_family(p)] for p, s in size.items()}


def rounding_only(gradients, share: float) -> frozenset[str]:
    """Paths of gradients that are no more than `share` of the norm of all together."""
    size = {p: _norm(_wide(g)) for p, g in gradients.items()}
    whole = float(np.linalg.norm(list(size.values())))
    return frozenset(p for p, s in size.items() if s <= share * whole)


def _family(path: str) -> str:
    """The group whose norm an error is relative to: parameters, a field of optimizer state."""
    return (
        path.split("/layers/")[0].rsplit("/", 1)[0]
        if path.startswith("optimizer")
        else path.split("/")[0]
    )


def _wide(x) -> np.ndarray:
    """An array with digits to spare, real or complex."""
    return np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64)


def _gap(right: np.ndarray, got: jax.Array | np.ndarray) -> tuple[float, float]:
    """Norm of the error in the worst replica, and the largest distance between two replicas."""
    if not isinstance(got, jax.Array):
        return _norm(_apart(_wide(got), right)), 0.0
    squares: dict[int, float] = {}
    first: dict[tuple, tuple[np.ndarray, float]] = {}
    spread = 0.0
    for shard in got.addressable_shards:
        data = np.asarray(shard.data)
        place = tuple((s.start, s.stop) for s in shard.index)
        known, square = first.get(place, (None, 0.0))
        # Most replicas equal the first to the bit, and so does their error.
        if known is None or not np.array_equal(data, known):
            square = _norm(_apart(_wide(data), right[shard.index])) ** 2
            if known is None:
                first[place] = data, square
            else:
                spread = max(spread, _norm(_apart(_wide(data), known)))
        squares[shard.replica_id] = squares.get(shard.replica_id, 0.0) + square
    return float(np.sqrt(max(squares.values()))), spread


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference; none between infinities that are the same."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, a - b)


def _norm(x: np.ndarray) -> float:
    """The Euclidean norm of all elements."""
    # Along an axis numpy sums in pairs by itself; else BLAS does, whose threads keep cores busy.
    return float(np.linalg.norm(x.ravel(), axis=0))
