"""Which collective of the partitioned module each part of a finished one was made of.

XLA combines collectives, turns an all-reduce of which a slice is kept into a reduce-scatter, adds
partial sums up before one all-reduce, makes one of two that follow each other over different axes,
and moves one out of a loop; names are lost on the way. A part is told by its name where it has one,
by where its value comes from and goes to, by its bytes; of two that are as like, by the scope that
it is in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from jaxpar.hlo.parts import Part
from jaxpar.measures.explain.asked import Asked, Ends

_BECOMES = {
    "all-reduce": ("reduce-scatter", "all-gather", "collective-permute"),
    "all-to-all": ("collective-permute", "all-gather", "ragged-all-to-all"),
    "all-gather": ("all-reduce", "collective-permute", "collective-broadcast"),
    "reduce-scatter": ("all-reduce", "all-to-all"),
    "collective-permute": ("all-to-all",),
}
"""What XLA may make of a collective of one kind."""

_ENOUGH = 3
"""Points below which a match is none."""


class Matches:
    """The collectives of a partitioned module, found again by what a finished one tells."""

    def __init__(self, asked: Sequence[Asked]):
        self.asked = asked
        self._by: dict[object, list[Asked]] = {}
        for one in asked:
            for key in _keys(one.name, one.ends, one.part.bytes_each):
                self._by.setdefault((one.axes, key), []).append(one)
        self._axes = sorted({one.axes for one in asked})

    def of(self, part: Part, axes: tuple[str, ...], ends: Ends) -> Asked | None:
        """The collective that a part was made of; None where none is like it.

        Of several that follow each other over some of its axes each, the first, over all of them.
        """
        if (best := self._best(part, axes, ends)) or part.collective.kind != "all-reduce":
            return best
        fewer = [over for over in self._axes if over and set(over) < set(axes)]
        found = [one for over in fewer if (one := self._best(part, over, ends))]
        first = max(found, key=lambda one: (_points(one, part, ends), _held(one)), default=None)
        return first and replace(first, axes=axes)

    def _best(self, part: Part, axes: tuple[str, ...], ends: Ends) -> Asked | None:
        """The most alike of those over these very axes; None where none is like it."""
        candidates: dict[int, Asked] = {}
        for name in part.names or ("",):
            for key in _keys(name, ends, part.bytes_each):
                candidates |= {id(one): one for one in self._by.get((axes, key), ())}
        best = max(
            candidates.values(),
            key=lambda one: (_points(one, part, ends), _is_beside(one, part)),
            default=None,
        )
        return best if best and _points(best, part, ends) >= _ENOUGH else None


def _keys(name: str, ends: Ends, size: int) -> Iterable[object]:
    """What two records of one collective may have in common."""
    if name:
        yield "name", name
    if ends.origins:
        yield "origins", ends.origins
    if ends.results:
        yield "results", ends.results
    yield "bytes", size


def _is_beside(one: Asked, part: Part) -> bool:
    """Whether both are in one scope, so that what made the part's value may have asked for it."""
    scope = one.name.rpartition("/")[0]
    return any(name.rpartition("/")[0] == scope for name in part.names)


def _held(one: Asked) -> int:
    """Along how many axes its value is a partial result yet: the first of several has most."""
    return len({p.axis for p in one.value.partial}) if one.value else 0


def _points(one: Asked, part: Part, ends: Ends) -> int:
    """How much a collective of the partitioned module is like a part of a finished one."""
    kind = part.collective.kind
    alike = 2 if one.kind == kind else 0
    if one.kind != kind and kind not in _BECOMES.get(one.kind, ()):
        return 0
    if part.reducer and one.part.reducer and part.reducer != one.part.reducer:
        return 0
    named = 4 if part.names[:1] == (one.name,) else 2 if one.name in part.names else 0
    same = 3 * (bool(ends.origins) and ends.origins == one.ends.origins)
    same += 3 * (bool(ends.results) and ends.results == one.ends.results)
    size = 2 * (part.bytes_each == one.part.bytes_each)
    return alike + named + same + size + (part.dtype == one.part.dtype)
