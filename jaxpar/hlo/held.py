"""What is known of results that are tuples, and of what no rule follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from jaxpar.hlo.contractions import resized
from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.values import Value, joined, unknown

Held = Value | tuple["Held", ...]
"""What is known of an instruction's result: of a tuple, of each element."""


def gathered_over(value: Value, axes: frozenset[str], shape: tuple[int, ...]) -> Value:
    """What is known of a value gathered over these axes: all devices along them have it alike."""
    odd = axes & frozenset(p.axis for p in value.partial)
    kept = tuple(tuple(replace(f, axes=f.axes - axes) for f in dim) for dim in value.dims)
    dims = tuple(resized(d, n) for d, n in zip(kept, shape, strict=True))
    partial = frozenset(p for p in value.partial if p.axis not in odd)
    return replace(value, dims=dims, partial=partial, differs=value.differs - axes)


def not_followed(i: Instruction, operands: Sequence[Held]) -> Held:
    """The result of an operation that is not followed."""
    values = list(_flat(operands))
    made = [unknown(shape, values) for _, shape in i.shapes]
    return made[0] if len(made) == 1 else tuple(made)


def _flat(held: Sequence[Held]):
    """The arrays of tuples within tuples."""
    for value in held:
        if isinstance(value, Value):
            yield value
        else:
            yield from _flat(value)


def either(a: Held, b: Held, join: Callable[[Value, Value], Value] = joined) -> Held:
    """What holds of a result that is the one or the other."""
    if isinstance(a, Value) and isinstance(b, Value):
        if len(a.dims) != len(b.dims):
            return unknown((1,) * len(a.dims), [a, b])
        return join(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(either(x, y, join) for x, y in zip(a, b, strict=True))
    return a


def differing(held: Held, axes: frozenset[str]) -> Held:
    """A result that may differ along these axes too."""
    if isinstance(held, Value):
        return replace(held, differs=held.differs | axes) if axes else held
    return tuple(differing(one, axes) for one in held)


def vague(held: Held, axes: Iterable[str]) -> Held:
    """A result of which nothing is claimed."""
    return held.vague(axes) if isinstance(held, Value) else tuple(vague(h, axes) for h in held)
