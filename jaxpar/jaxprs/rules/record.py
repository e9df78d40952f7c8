"""The record of one equation's factors, and the counter that hands factor numbers out.

`Factors` is frozen; `Ids` lives only while one rule runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Dims = tuple[tuple[int, ...], ...]
"""One tuple of factors per dim, major to minor; a dim has several where a reshape merged dims."""


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


class Ids:
    """Hands out factors to a rule, remembering size, reduction and wholeness of each."""

    def __init__(self):
        """Start with no factor."""
        self.sizes: list[int] = []
        self.reduced: dict[int, str] = {}
        self.whole: set[int] = set()

    def new(self, size: int, *, whole: bool = False) -> int:
        """Make a factor of this size."""
        self.sizes.append(int(size))
        factor = len(self.sizes) - 1
        if whole:
            self.whole.add(factor)
        return factor

    def dims(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Make one fresh factor per dim of `shape`."""
        return [(self.new(size),) for size in shape]

    def whole_dims(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Make one fresh factor per dim of `shape`, none of which may be split."""
        return [(self.new(size, whole=True),) for size in shape]

    def seal(self, operands, results) -> Factors:
        """Freeze what the rule said."""
        return Factors(
            operands=tuple(map(tuple, operands)),
            results=tuple(map(tuple, results)),
            sizes=tuple(self.sizes),
            reduced=tuple(sorted(self.reduced.items())),
            whole=frozenset(self.whole),
        )
