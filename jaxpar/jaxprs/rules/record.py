"""The record of one primitive's rule, of one equation's factors, and the counter of factors.

`Rule` and `Factors` are frozen; `FactorCounter` lives only while one rule runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Dims = tuple[tuple[int, ...], ...]
"""One tuple of factors per dim, major to minor; a dim has several where a reshape merged dims."""

KINDS = (
    "call",  # holds a jaxpr that is run once: jit
    "remat",  # a call whose intermediate values are computed again in backward
    "custom",  # a call with a derivative rule of its own
    "scan",
    "while",
    "cond",
    "solve",  # a linear system, solved by a function that it holds
    "shards",  # a region on shards: shard_map
    "layers",  # the hook `through`
    "product",  # contracts operands: matrix products and convolutions
    "lookup",  # reads at indices: gather
    "place",  # reads or writes at a computed place: dynamic slices
    "scatter",  # writes at indices
    "reduce",
    "elementwise",
    "view",  # moves or cuts without computing
    "cast",  # copies, in another dtype perhaps
    "random",
    "collective",
    "annotation",  # says something, computes nothing
    "other",
)


@dataclass(frozen=True)
class Rule:
    """What a primitive is, said once.

    Attributes:
        kind: one of `KINDS`.
        relate: (a `FactorCounter`, operand shapes, result shapes, parameters) -> (factors of the
            operands' dims, of the results' dims); None where nothing is related.
        on_shard: (parameters, equation, local operand shapes, local result shape) -> the parameters
            for one device's shard; None where they are the same.
        sharding: the parameter by which it is told how its result is sharded, or None.
        ids: what becomes of ids: "kept" as they are, "computed" into others, "sides" where its
            k-th result is its k-th operand in another order, or "" where it makes no ids of them.
        holds: the operands whose elements its result holds or is computed from, as slice() takes.
        is_piecewise: whether it can be computed a piece at a time along a dim that passes through.
        keeps_stored: whether a weight that is stored sharded can go through it before it is
            gathered.
        is_cheap: whether backward computes it again rather than keep its result.
        is_opaque: whether XLA's partitioner knows no dims of it, so that it is computed on shards.
        looks_at_bits: whether it means another thing in another width.
        is_equality: whether it says where two arrays are equal.
        flops: of a product, equation -> multiply-adds times two that it does.
        traffic: of a collective, what XLA calls it.
    """

    kind: str
    relate: Callable[..., Any] | None = None
    on_shard: Callable[..., Any] | None = None
    sharding: str | None = None
    ids: str = ""
    holds: tuple[int | None, ...] = (None,)
    is_piecewise: bool = False
    keeps_stored: bool = False
    is_cheap: bool = False
    is_opaque: bool = False
    looks_at_bits: bool = False
    is_equality: bool = False
    flops: Callable[[Any], int] | None = None
    traffic: str | None = None

    def __post_init__(self):
        assert self.kind in KINDS, self.kind
        assert self.ids in ("", "kept", "computed", "sides"), self.ids


@dataclass(frozen=True)
class Factors:
    """The factors of one equation: those of each operand's and each result's dims, and their kinds.

    `reduced` pairs a factor that no result has with how it goes ("sum", "max", "min", "prod",
    "and", "or"); `whole` are the factors along which the primitive cannot be done piece by piece.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: tuple[int, ...]
    reduced: tuple[tuple[int, str], ...]
    whole: frozenset[int]


class FactorCounter:
    """Hands out factors to a rule, remembering size, reduction and wholeness of each."""

    def __init__(self):
        """Start with no factor."""
        self.sizes: list[int] = []
        self.reduced: dict[int, str] = {}
        self.whole: set[int] = set()

    def factor(self, size: int, *, whole: bool = False) -> int:
        """Make a factor of this size."""
        self.sizes.append(int(size))
        factor = len(self.sizes) - 1
        if whole:
            self.whole.add(factor)
        return factor

    def dims(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Make one fresh factor per dim of `shape`."""
        return [(self.factor(size),) for size in shape]

    def whole_dims(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Make one fresh factor per dim of `shape`, none of which may be split."""
        return [(self.factor(size, whole=True),) for size in shape]

    def seal(self, operands, results) -> Factors:
        """Freeze what the rule said."""
        return Factors(
            operands=tuple(map(tuple, operands)),
            results=tuple(map(tuple, results)),
            sizes=tuple(self.sizes),
            reduced=tuple(sorted(self.reduced.items())),
            whole=frozenset(self.whole),
        )
