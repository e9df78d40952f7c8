"""What an operation makes of the values of its operands: one rule an operation.

A rule takes an instruction and the values of its operands and gives that of the result. What has no
rule gives a result that may differ along every axis that its operands do: nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxpar.hlo.contractions import (
    convolution,
    folded,
    gathered,
    numbers,
    partial_axes,
    product,
    resized,
    scattered,
    shape_of,
    size_of,
)
from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.values import (
    Dim,
    Factor,
    Value,
    joined,
    merged,
    plain,
    regrouped,
    unknown,
)

Rule = Callable[[Instruction, Sequence[Value], tuple[str, str], str], Value]
"""(instruction, its operands, (computation, name), what its reducer does) -> its result."""

LINEAR = frozenset("add subtract negate copy convert bitcast reduce-precision real imag".split())
"""Operations of which the sum of the parts' results is the result of the sum."""


def elementwise(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Of each element alone: linear operations keep a partial sum, others do not."""
    rank = len(shape_of(i))
    if any(len(v.dims) != rank for v in given):
        return unknown(shape_of(i), given)
    result = merged(given)
    if i.opcode in ("multiply", "divide"):
        return _scaled(i, given, result)
    if i.opcode in LINEAR:
        if all(v.is_zero for v in given):
            return replace(result, is_zero=True)
        return _added([v for v in given if not v.is_zero], result)
    if i.opcode == "select":
        return _selected(given, result)
    return replace(result, differs=result.differs | partial_axes(given))


def _selected(given: Sequence[Value], result: Value) -> Value:
    """The one or the other of two values, element by element: a partial sum where both are."""
    if (own := _own_rows(given)) is not None:
        return replace(own, dims=result.dims, differs=result.differs - given[0].own)
    kept = joined(given[1], given[2])
    over = [frozenset(p.axis for p in v.partial) for v in given[1:] if not v.is_zero]
    odd = frozenset().union(*over) - frozenset(p.axis for p in kept.partial)
    followed = frozenset(p.axis for p in kept.partial if p.by != "lookup")
    lost = given[0].varies & followed
    partial = frozenset(p for p in kept.partial if p.axis not in lost)
    differs = result.differs | partial_axes(given[:1]) | odd | lost
    return replace(result, partial=partial, differs=differs, is_zero=kept.is_zero)


def _own_rows(given: Sequence[Value]) -> Value | None:
    """The partial sum that a lookup is of which each device keeps the rows of its own shard.

    None where it keeps others, or something else than zeros in place of them.
    """
    truth, one, other = given
    kept = one if other.is_zero else other
    looked_up = frozenset(p for p in kept.partial if p.by == "lookup")
    axes = frozenset(p.axis for p in looked_up)
    if not (one.is_zero or other.is_zero) or not axes or not axes <= truth.own:
        return None
    sums = frozenset(replace(p, by="rows") for p in looked_up)
    return replace(kept, partial=(kept.partial - looked_up) | sums)


def _added(given: Sequence[Value], result: Value) -> Value:
    """A sum of values: a partial sum where one is, and the others are too or are alike there."""
    found = {p.axis: p for v in given for p in sorted(v.partial, key=str)}
    parts = [frozenset(p.axis for p in v.partial) for v in given]
    kept, lost = set(), set()
    for axis, partial in found.items():
        others = [v for v, axes in zip(given, parts, strict=True) if axis not in axes]
        fits = all(
            p.by == partial.by or (p.is_sum and partial.is_sum)
            for v in given
            for p in v.partial
            if p.axis == axis
        )
        alone = fits and not any(axis in v.varies for v in others)
        kept |= {partial} if alone and (partial.is_sum or not others) else set()
        lost |= set() if alone else {axis}
    return replace(result, partial=frozenset(kept), differs=result.differs | lost)


def _scaled(i: Instruction, given: Sequence[Value], result: Value) -> Value:
    """A product or quotient: a partial sum times what all devices have alike is one."""
    one, other = given
    if i.opcode == "divide" and other.partial or (one.partial and other.partial):
        return replace(result, differs=result.differs | partial_axes(given))
    by = other if one.partial else one
    sums = one.partial or other.partial
    kept = frozenset(p for p in sums if p.axis not in by.varies and p.is_sum)
    lost = frozenset(p.axis for p in sums - kept)
    is_zero = one.is_zero or (other.is_zero and i.opcode == "multiply")
    return replace(result, partial=kept, differs=result.differs | lost, is_zero=is_zero)


def moved(dims: tuple[Dim, ...], value: Value) -> Value:
    """The same values in other places."""
    return replace(value, dims=dims)


def broadcast(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Repeated along new dims."""
    dims: list[Dim] = [(Factor("", size),) for size in shape_of(i)]
    for place, dim in zip(numbers(i, "dimensions"), given[0].dims, strict=True):
        dims[place] = dim
    return moved(tuple(dims), given[0])


def transpose(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Dims in another order."""
    return moved(tuple(given[0].dims[n] for n in numbers(i, "dimensions")), given[0])


def reshape(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Dims merged or taken apart."""
    may_split = i.op_name.rpartition("/")[2] == "reshape"  # others only add dims, or take them away
    dims = regrouped(given[0].dims, shape_of(i), may_split)
    if dims is None:
        axes = given[0].sharded
        return plain(
            shape_of(i),
            partial=given[0].partial,
            differs=given[0].differs | axes,
            is_zero=given[0].is_zero,
        )
    return moved(dims, given[0])


def sliced(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """A part of an array; where it begins at another place on each device, a shard of it."""
    source, starts = given[0], given[1:]
    dims = []
    for n, (dim, size) in enumerate(zip(source.dims, shape_of(i), strict=True)):
        dim = dim if size_of(dim) == size else resized(dim, size)
        axes = starts[n].varies if n < len(starts) else frozenset()
        first = replace(dim[0], axes=dim[0].axes | axes, is_sure=dim[0].is_sure and not axes)
        dims.append((first, *dim[1:]))
    return moved(tuple(dims), source)


def placed(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """An array with a part written over: what holds of both."""
    whole, part = given[:2]
    if len(part.dims) != len(whole.dims):
        return unknown(shape_of(i), given[:2])
    dims = tuple(
        d if size_of(d) == n else resized(d, n) for d, n in zip(part.dims, shape_of(i), strict=True)
    )
    starts = frozenset(a for v in given[2:] for a in v.varies)
    result = joined(whole, moved(dims, part))
    return replace(result, differs=result.differs | starts, is_zero=whole.is_zero and part.is_zero)


def concatenated(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Arrays one after the other; padding with zeros is that too."""
    fitted = [moved(_resized_all(v.dims, shape_of(i)), v) for v in given]
    result = fitted[0]
    for value in fitted[1:]:
        result = joined(result, value)
    return result


def padded(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """An array with something around it."""
    around = plain(shape_of(i), is_zero=given[1].is_zero, differs=given[1].varies)
    return joined(moved(_resized_all(given[0].dims, shape_of(i)), given[0]), around)


def _resized_all(dims: tuple[Dim, ...], shape: tuple[int, ...]) -> tuple[Dim, ...]:
    """Dims as they are where their size is that of a shape, else resized."""
    return tuple(d if size_of(d) == n else resized(d, n) for d, n in zip(dims, shape, strict=True))


def rule_of(i: Instruction) -> Rule | None:
    """The rule of an operation; None for one that is not followed."""
    return _RULES.get(i.opcode)


def _unary(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """What hands on its first operand as it is."""
    return given[0]


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "add subtract multiply divide negate abs sign sqrt rsqrt cbrt power maximum minimum clamp "
        "select compare and or xor not exponential exponential-minus-one log log-plus-one tanh "
        "logistic floor ceil round-nearest-afz round-nearest-even remainder is-finite sine cosine "
        "tan erf atan2 convert reduce-precision shift-left shift-right-logical "
        "shift-right-arithmetic".split(),
        elementwise,
    ),
    **dict.fromkeys(("copy", "opt-barrier", "reverse", "copy-start", "copy-done"), _unary),
    "broadcast": broadcast,
    "transpose": transpose,
    "reshape": reshape,
    "bitcast": reshape,
    "slice": sliced,
    "dynamic-slice": sliced,
    "dynamic-update-slice": placed,
    "concatenate": concatenated,
    "pad": padded,
    "dot": product,
    "reduce": folded,
    "gather": gathered,
    "scatter": scattered,
    "convolution": convolution,
}
