"""What is known of one array on all devices: how each dim is sharded, and of what it is a part.

Per mesh axis an array is the same on all devices along it, or sharded along a dim, or a partial sum
(or maximum, and so on) that a collective has yet to complete, or different in a way not followed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from math import prod

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Factor:
    """A part of a dim: several where dims were merged into one.

    Attributes:
        name: of the dim, "" where it is not known.
        size: on one device.
        axes: the mesh axes over which it is sharded.
        is_sure: False where a dim of size 1 on each device was reshaped away: it was merged with
            another, or each device took its own.
    """

    name: str
    size: int
    axes: frozenset[str] = NOTHING
    is_sure: bool = True


Dim = tuple[Factor, ...]


@dataclass(frozen=True)
class Partial:
    """What devices along a mesh axis hold of a result that runs over a sharded dim.

    Attributes:
        axis: along which the parts are held.
        by: what makes the whole of the parts: "add", "maximum", ...; "lookup" where each device has
            the rows of a table that are its own, and "rows" where zeros stand for the others.
        dims: the dims that the result runs over, as far as they are named.
        at: (computation, instruction) that made it.
        is_sure: whether it is certain that the result runs over a sharded dim.
    """

    axis: str
    by: str
    dims: tuple[str, ...]
    at: tuple[str, str]
    is_sure: bool = True

    @property
    def is_sum(self) -> bool:
        """Whether the parts are to be added."""
        return self.by in ("add", "rows")


@dataclass(frozen=True)
class Value:
    """One array on all devices.

    Attributes:
        dims: for each dim its factors, major first.
        partial: what it is a part of.
        differs: mesh axes along which it may differ in some other way.
        reduced: mesh axes over which it is the sum that a collective made.
        is_zero: whether it is all zeros, as accumulators begin.
        own: mesh axes along which it is for certain another number on each device.
    """

    dims: tuple[Dim, ...]
    partial: frozenset[Partial] = frozenset()
    differs: frozenset[str] = NOTHING
    reduced: frozenset[str] = NOTHING
    is_zero: bool = False
    own: frozenset[str] = NOTHING

    @property
    def sharded(self) -> frozenset[str]:
        """The mesh axes over which some dim is sharded."""
        return frozenset(axis for dim in self.dims for factor in dim for axis in factor.axes)

    @property
    def surely_sharded(self) -> frozenset[str]:
        """Those over which a dim is sharded for certain."""
        return frozenset(a for dim in self.dims for f in dim if f.is_sure for a in f.axes)

    @property
    def varies(self) -> frozenset[str]:
        """The mesh axes along which it is not the same, but for being a partial result."""
        return self.sharded | self.differs

    def sums(self) -> dict[str, Partial]:
        """axis -> the partial sum that it certainly is along it."""
        return {
            p.axis: p for p in self.partial if p.is_sum and p.is_sure and p.axis not in self.differs
        }

    def vague(self, axes: Iterable[str]) -> Value:
        """An array of the same shape that may differ along these axes in any way."""
        return plain([prod(f.size for f in dim) for dim in self.dims], differs=frozenset(axes))


def plain(shape: Iterable[int], **known) -> Value:
    """An array of this shape of whose dims nothing is known; `known` are fields of Value."""
    return Value(tuple((Factor("", size),) for size in shape), **known)


def unknown(shape: Iterable[int], of: Iterable[Value]) -> Value:
    """The result of an operation that is not followed: it may differ along each axis that the
    operands do."""
    axes = frozenset(a for v in of for a in (*v.varies, *(p.axis for p in v.partial)))
    return plain(shape, differs=axes)


def axes_of_dim(dim: Dim) -> frozenset[str]:
    """The mesh axes over which a dim is sharded."""
    return frozenset(axis for factor in dim for axis in factor.axes)


def names_of(dim: Dim) -> tuple[str, ...]:
    """The names of a dim that are known."""
    return tuple(dict.fromkeys(factor.name for factor in dim if factor.name))


def merged_dim(one: Dim, other: Dim) -> Dim:
    """The dim of an elementwise result: what is known of either."""
    if not (any(f.name for f in one) or axes_of_dim(one)):
        return other
    if not (any(f.name for f in other) or axes_of_dim(other)):
        return one
    if [f.size for f in one] == [f.size for f in other]:
        pairs = zip(one, other, strict=True)
        return tuple(
            Factor(a.name or b.name, a.size, a.axes | b.axes, a.is_sure and b.is_sure)
            for a, b in pairs
        )
    more = axes_of_dim(other) - axes_of_dim(one)
    first = replace(one[0], axes=one[0].axes | more, is_sure=one[0].is_sure and not more)
    return (first, *one[1:])


def merged(values: Iterable[Value]) -> Value:
    """The dims of an elementwise result of arrays of one rank, with what any of them differs in."""

    def both(a: Value, b: Value) -> Value:
        dims = tuple(map(merged_dim, a.dims, b.dims))
        differs, reduced = a.differs | b.differs, a.reduced & b.reduced
        return replace(a, dims=dims, differs=differs, reduced=reduced, own=a.own | b.own)

    return replace(reduce(both, values), partial=frozenset(), is_zero=False)


def carried(before: Value, after: Value) -> Value:
    """What holds of a loop's carry, given what holds before a turn and after it.

    A partial sum after a turn is one in every turn but the first.
    """
    new = frozenset(p for p in after.partial if p.axis not in before.varies)
    if before.is_zero or {p.axis for p in new} <= {p.axis for p in before.partial}:
        return joined(before, after)
    return joined(replace(before, partial=before.partial | new), after)


def joined(a: Value, b: Value) -> Value:
    """What holds of an array that is the one or the other."""
    if a == b or b.is_zero:
        return a
    if a.is_zero:
        return b
    pairs = list(zip(a.dims, b.dims, strict=True))
    dims = tuple(x if x == y else _common(x, y) for x, y in pairs)
    kept = frozenset(axis for dim in dims for axis in axes_of_dim(dim))
    odd = frozenset(p.axis for p in a.partial) ^ frozenset(p.axis for p in b.partial)
    partial = {(p.axis, p.by): p for p in sorted(a.partial | b.partial, key=str)}
    return Value(
        dims,
        frozenset(p for p in partial.values() if p.axis not in odd),
        a.differs | b.differs | odd | ((a.sharded | b.sharded) - kept),
        a.reduced & b.reduced,
    )


def _common(one: Dim, other: Dim) -> Dim:
    """What two dims of one size have in common."""
    if [f.size for f in one] != [f.size for f in other]:
        size = prod(f.size for f in one)
        return (Factor("", size, axes_of_dim(one) & axes_of_dim(other), False),)
    return tuple(
        Factor(a.name if a.name == b.name else "", a.size, a.axes & b.axes, a.is_sure and b.is_sure)
        for a, b in zip(one, other, strict=True)
    )


def regrouped(
    dims: Iterable[Dim], shape: Sequence[int], may_split: bool = False
) -> tuple[Dim, ...] | None:
    """The factors of an array, reshaped; None where they do not fit the new shape.

    `may_split` says that a dim of size 1 which is new may be the sharded part of the dim behind it:
    8 rows on 4 devices, reshaped to 4 groups of 2, are on each device 2 rows and then 1 x 2.

    >>> rows = (Factor("batch", 4, frozenset({"data"})),)
    >>> regrouped([rows, (Factor("sequence", 16),)], [64])[0][0].axes
    frozenset({'data'})
    """
    todo = _settled(list(dims), shape, may_split)
    lost = [factor for factor in todo if factor.size == 1 and factor.axes]
    made: list[Dim] = []
    for number, size in enumerate(shape):
        taken: list[Factor] = []
        while todo and prod(f.size for f in taken) < size:
            left = size // prod(f.size for f in taken)
            first = todo.pop(0)
            if first.size > left:
                if first.size % left:
                    return None
                todo.insert(0, Factor(first.name, first.size // left))
                first = replace(first, size=left)
            taken.append(first)
        if (
            size == 1
            and todo
            and todo[0].size == 1
            and len(todo) > sum(n > 1 for n in shape[number + 1 :])
        ):
            taken.append(todo.pop(0))
        if prod(f.size for f in taken) != size:
            return None
        made.append(_unsure(taken, size) or (Factor("", size),))
    if any(f.size > 1 for f in todo):
        return None
    if todo and made:
        made[-1] = _unsure([*made[-1], *todo], shape[-1])
    return tuple(made) if made or not lost else None


def _settled(dims: Sequence[Dim], shape: Sequence[int], may_split: bool) -> list[Factor]:
    """The factors of an array that is reshaped; dims of size 1 in doubt where some of them go.

    Which of several that stand side by side went is not told by a reshape. Where some are new, and
    `may_split`, it is the dim behind them of which it is not told whether it is sharded yet.
    """
    sizes = [prod(f.size for f in dim) for dim in dims]
    before, after = _ones(sizes), _ones(shape)
    counts = Counter(at for at in before if at), Counter(at for at in after if at)
    settled: list[Factor] = []
    for number, (dim, at) in enumerate(zip(dims, before, strict=True)):
        behind = prod(sizes[:number])
        split = may_split and not at and counts[1][behind] > counts[0][behind]
        sure = counts[0][at] == counts[1][at] if at else not split
        settled += [replace(f, is_sure=f.is_sure and sure) for f in dim]
    return settled


def _ones(sizes: Sequence[int]) -> list[int]:
    """For each dim of size 1 how many elements the dims before it have; 0 for other dims."""
    return [prod(sizes[:number], start=1) if size == 1 else 0 for number, size in enumerate(sizes)]


def _unsure(factors: Iterable[Factor], size: int) -> Dim:
    """The factors of a dim of a size, those in doubt that are of size 1."""
    return tuple(replace(f, is_sure=f.is_sure and (f.size > 1 or f.size == size)) for f in factors)
