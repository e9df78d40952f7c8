"""The placement and type that several ways of computing the same values agree on.

Used for what goes round a loop, comes out of branches, or has a rule of its own beside it: start
from what is known, join in what each way makes, until nothing changes.
"""

from __future__ import annotations

from jaxpar.core.varying import varying
from jaxpar.spmd.value import Deferred, Value, axes_of


class Carry:
    """The placement and type of a loop's carry, joined turn by turn until they last."""

    def __init__(self, values):
        """Start from the values' own placements and types."""
        self.dims = [v.use if getattr(v, "use", None) else v.dims for v in values]
        self.axes = [
            frozenset() if isinstance(v, Deferred) else varying(v.array) | axes_of(v.dims)
            for v in values
        ]

    def arrays(self, frame, values):
        """The local arrays of values, brought to the placement and type agreed upon."""
        return [
            frame.vary(frame.place(v, dims), axes | axes_of(dims)).array
            for v, dims, axes in zip(values, self.dims, self.axes, strict=True)
        ]

    def wrap(self, arrays):
        """Local arrays as Values in the placement agreed upon."""
        return [Value(array, dims) for array, dims in zip(arrays, self.dims, strict=True)]

    def join(self, frame, results):
        """Add what a turn shards further or makes vary; returns whether anything changed."""
        before = (self.dims, self.axes)
        placed = [frame.place(v, dims) for v, dims in zip(results, self.dims, strict=True)]
        self.axes = [a | varying(v.array) for a, v in zip(self.axes, placed, strict=True)]
        self.dims = [_finer(d, v.dims) for d, v in zip(self.dims, results, strict=True)]
        return (self.dims, self.axes) != before


def _finer(have, got):
    """`have` with those dims sharded further that `got` shards further, no axis used twice."""
    result = list(have)
    for d, (old, new) in enumerate(zip(have, got, strict=True)):
        others = axes_of((*result[:d], *result[d + 1 :]))
        if new[: len(old)] == old and not others & frozenset(new):
            result[d] = new
    return tuple(result)
