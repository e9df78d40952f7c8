"""Rules of operations that run over dims: products, sums, lookups, convolutions.

Over a dim that is sharded, what each device computes is a part of the result; see `transfer`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.values import (
    Dim,
    Factor,
    Partial,
    Value,
    axes_of_dim,
    merged_dim,
    names_of,
    unknown,
)

_LIST = re.compile(r"(\w+)=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def numbers(i: Instruction, name: str) -> tuple[int, ...]:
    """The numbers of an attribute such as `dimensions={0,2}`; none where it is not there."""
    for key, listed in _LIST.findall(i.attributes):
        if key == name:
            return tuple(int(n) for n in listed.split(",") if n)
    return ()


def shape_of(i: Instruction) -> tuple[int, ...]:
    """The sizes of an instruction's result, of a tuple those of its first array."""
    return i.shapes[0][1] if i.shapes else ()


def partial_axes(given: Sequence[Value]) -> frozenset[str]:
    """The axes along which operands are partial results."""
    return frozenset(p.axis for v in given for p in v.partial)


def size_of(dim: Dim) -> int:
    """The size of a dim on one device."""
    size = 1
    for factor in dim:
        size *= factor.size
    return size


def resized(dim: Dim, size: int) -> Dim:
    """A dim of which a part is taken, or to which something is added."""
    if len(dim) == 1:
        return (replace(dim[0], size=size),)
    large = tuple(factor for factor in dim if factor.size > 1) or dim
    # What is in doubt of one factor is so of the whole: their axes are no longer told apart.
    is_sure = all(factor.is_sure for factor in dim if factor.axes)
    return (Factor(" x ".join(names_of(large)), size, axes_of_dim(dim), is_sure),)


def product(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """A product: over a sharded contracted dim it is a partial sum."""
    left, right = given[:2]
    contracted = numbers(i, "lhs_contracting_dims"), numbers(i, "rhs_contracting_dims")
    batch = numbers(i, "lhs_batch_dims"), numbers(i, "rhs_batch_dims")
    return contraction(shape_of(i), (left, right), contracted, batch, at)


def contraction(shape, sides, contracted, batch, at) -> Value:
    """The product of two arrays over these dims of each, these others kept in common."""
    left, right = sides
    shared = [merged_dim(left.dims[a], right.dims[b]) for a, b in zip(*batch, strict=True)]
    free = [
        dim
        for side, over, kept in zip(sides, contracted, batch, strict=True)
        for n, dim in enumerate(side.dims)
        if n not in (*over, *kept)
    ]
    over = [merged_dim(left.dims[a], right.dims[b]) for a, b in zip(*contracted, strict=True)]
    if len(shared) + len(free) != len(shape):
        return unknown(shape, sides)
    differs = left.differs | right.differs
    made = _partials(over, "add", at)
    kept = frozenset(
        p
        for side, against in ((left, right), (right, left))
        for p in side.partial
        if p.is_sum and p.axis not in against.varies and not against.partial
    )
    lost = partial_axes(sides) - frozenset(p.axis for p in kept)
    differs = (differs | lost) - frozenset(p.axis for p in made)
    dims = (*shared, *free)
    is_zero = left.is_zero or right.is_zero
    return Value(dims, made | kept, differs, left.reduced & right.reduced, is_zero)


def _partials(over: Sequence[Dim], by: str, at: tuple[str, str]) -> frozenset[Partial]:
    """What is partial of a result that runs over these dims."""
    found: dict[str, list[Factor]] = {}
    for dim in over:
        for factor in dim:
            for axis in factor.axes:
                found.setdefault(axis, []).append(factor)
    return frozenset(
        Partial(
            axis,
            by,
            tuple(dict.fromkeys(f.name for f in factors if f.name)),
            at,
            any(f.is_sure for f in factors),
        )
        for axis, factors in found.items()
    )


def folded(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """A sum, maximum and so on over some dims."""
    source, over = given[0], numbers(i, "dimensions")
    dims = tuple(dim for n, dim in enumerate(source.dims) if n not in over)
    made = _partials([source.dims[n] for n in over], by, at)
    kept = source.partial if by == "add" else frozenset()
    lost = frozenset(p.axis for p in source.partial - kept)
    return replace(
        source,
        dims=dims,
        partial=made | frozenset(p for p in kept if p.axis not in {m.axis for m in made}),
        differs=source.differs | lost,
        reduced=source.reduced if by == "add" else frozenset(),
    )


def gathered(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Rows of a table; of a sharded one each device has its own."""
    table, ids = given[:2]
    offsets = numbers(i, "offset_dims")
    gone = {*numbers(i, "collapsed_slice_dims"), *numbers(i, "operand_batching_dims")}
    kept = [dim for n, dim in enumerate(table.dims) if n not in gone]
    vector = re.search(r"index_vector_dim=(\d+)", i.attributes)
    rows = [d for n, d in enumerate(ids.dims) if not vector or n != int(vector[1])]
    shape, dims = shape_of(i), []
    for n, size in enumerate(shape):
        source = kept if n in offsets else rows
        if not source:
            return unknown(shape, given)
        dim = source.pop(0)
        dims.append(dim if size_of(dim) == size else resized(dim, size))
    searched = [table.dims[n] for n in numbers(i, "start_index_map") if n < len(table.dims)]
    made = _partials(searched, "lookup", at)
    lost = partial_axes(given)
    differs = (table.differs | ids.differs | lost) - frozenset(p.axis for p in made)
    return Value(tuple(dims), made, differs)


def scattered(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """Rows added to a table: a partial sum where devices have other rows."""
    if len(given) != 3 or by != "add":
        return unknown(shape_of(i), given)
    table, ids, rows = given
    windows = numbers(i, "update_window_dims")
    over = [dim for n, dim in enumerate(rows.dims) if n not in windows]
    inserted = {*numbers(i, "inserted_window_dims"), *numbers(i, "input_batching_dims")}
    places = [n for n in range(len(table.dims)) if n not in inserted]
    dims = list(table.dims)
    for place, window in zip(places, windows, strict=False):
        if size_of(dims[place]) == size_of(rows.dims[window]):
            dims[place] = merged_dim(dims[place], rows.dims[window])
    made = _partials(over, "add", at)
    axes = frozenset(p.axis for p in made)
    kept = frozenset(p for p in rows.partial if p.axis not in axes)
    differs = (ids.differs | rows.differs | table.differs) - axes
    if not table.is_zero:
        return unknown(shape_of(i), given)
    return Value(tuple(dims), made | kept, differs)


def convolution(i: Instruction, given: Sequence[Value], at: tuple[str, str], by: str) -> Value:
    """A convolution: a product over features, and over a window that is not followed."""
    labels = _LABELS.search(i.attributes)
    if labels is None or "group_count" in i.attributes:
        return unknown(shape_of(i), given)
    left, right = given[:2]
    inputs, kernel, output = labels.groups()
    if any(axes_of_dim(left.dims[n]) for n, c in enumerate(inputs) if c.isdigit()):
        return unknown(shape_of(i), given)
    if any(axes_of_dim(right.dims[n]) for n, c in enumerate(kernel) if c.isdigit()):
        # The window of a filter's gradient: its positions are those of the result's cotangent.
        return unknown(shape_of(i), given)
    over = [merged_dim(left.dims[inputs.index("f")], right.dims[kernel.index("i")])]
    dims: list[Dim] = []
    for place, size in zip(output, shape_of(i), strict=True):
        if place == "b":
            dims.append(left.dims[inputs.index("b")])
        elif place == "f":
            dims.append(right.dims[kernel.index("o")])
        else:
            dims.append((Factor("", size),))
    made = _partials(over, "add", at)
    axes = frozenset(p.axis for p in made)
    differs = (left.differs | right.differs | partial_axes(given)) - axes
    return Value(tuple(dims), made, differs)
