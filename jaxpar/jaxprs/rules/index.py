"""Primitives that read or write at computed places: batch and window dims pass, indexed dims whole.

Covers embedding lookup, `take_along_axis` and their scatters, dynamic slices, and iota.
"""

from __future__ import annotations

from jaxpar.jaxprs.rules.record import Rule
from jaxpar.jaxprs.rules.reshape import passing


def _gather(counter, ins, outs, params):
    numbers = params["dimension_numbers"]
    operand, indices = counter.dims(ins[0]), counter.dims(ins[1])
    counter.whole.update(indices[-1])  # the coordinates themselves
    for d, at in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        indices[at] = operand[d]
    result: list = [None] * len(outs[0])
    window = iter(sorted(numbers.offset_dims))
    batch = iter([d for d in range(len(outs[0])) if d not in numbers.offset_dims])
    for d, size in enumerate(ins[0]):
        if d in numbers.operand_batching_dims:
            continue
        if d in numbers.collapsed_slice_dims:
            counter.whole.update(operand[d])
            continue
        at = next(window)
        # A slice as long as its dim starts at 0, or is outside, whatever the index says.
        if params["slice_sizes"][d] != size:
            counter.whole.update(operand[d])
            result[at] = (counter.factor(outs[0][at], whole=True),)
        else:
            result[at] = operand[d]
    for at, factor in zip(batch, indices[:-1], strict=True):
        result[at] = factor
    return [operand, indices], [result]


def _scatter(counter, ins, outs, params):
    numbers = params["dimension_numbers"]
    operand, indices = counter.dims(ins[0]), counter.dims(ins[1])
    counter.whole.update(indices[-1])
    updates: list = [None] * len(ins[2])
    for d, at in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        indices[at] = operand[d]
    window = iter(sorted(numbers.update_window_dims))
    places = [d for d in range(len(ins[2])) if d not in numbers.update_window_dims]
    for at, factor in zip(places, indices[:-1], strict=True):
        updates[at] = factor
    for at, factor in enumerate(indices[:-1]):
        # Two updates may fall on one place, and a piece of them would miss the other's.
        if at not in numbers.scatter_indices_batching_dims:
            counter.whole.update(factor)
    for d, size in enumerate(ins[0]):
        if d in numbers.operand_batching_dims:
            continue
        if d in numbers.inserted_window_dims:
            counter.whole.update(operand[d])
            continue
        at = next(window)
        if ins[2][at] != size:
            counter.whole.update(operand[d])
            updates[at] = (counter.factor(ins[2][at], whole=True),)
        else:
            updates[at] = operand[d]
    return [operand, indices, updates], [operand]


def _dynamic_slice(counter, ins, outs, params):
    # A dim taken whole starts at 0 whatever the index says, since indices are clamped.
    operand, result = passing(counter, ins[0], outs[0], lambda d: True)
    return [operand, *([] for _ in ins[1:])], [result]


def _dynamic_update_slice(counter, ins, outs, params):
    operand, update = passing(counter, ins[0], ins[1], lambda d: True)
    return [operand, update, *([] for _ in ins[2:])], [operand]


def _iota(counter, ins, outs, params):
    return [[] for _ in ins], [counter.dims(outs[0])]


def _rows_on_shard(params, eqn, operands, result):
    whole = eqn.invars[0].aval.shape
    sizes = zip(params["slice_sizes"], whole, operands[0], strict=True)
    return {**params, "slice_sizes": tuple(h if s == w else s for s, w, h in sizes)}


def _slice_on_shard(params, eqn, operands, result):
    return {**params, "slice_sizes": tuple(result)}


RULES = {
    "gather": Rule("lookup", _gather, _rows_on_shard, ids="kept", holds=(1,)),
    # What is written where: the operand and the updates, and not the places between them.
    **dict.fromkeys(
        ("scatter", "scatter-max", "scatter-min"),
        Rule("scatter", _scatter, ids="kept", holds=(0, 3, 2)),
    ),
    **dict.fromkeys(
        ("scatter-add", "scatter-sub", "scatter-mul"),
        Rule("scatter", _scatter, ids="computed", holds=(0, 3, 2)),
    ),
    "dynamic_slice": Rule(
        "place", _dynamic_slice, _slice_on_shard, keeps_stored=True, ids="kept", holds=(1,)
    ),
    "dynamic_update_slice": Rule("place", _dynamic_update_slice, ids="kept", holds=(2,)),
    "iota": Rule("view", _iota, sharding="sharding"),
}
