"""Primitives that move, add, cut or merge dims without computing: where each dim goes.

A dim that is cut, padded, reversed or joined to another must be whole; every other dim passes.
"""

from __future__ import annotations

from jaxpar.jaxprs.rules.record import Rule


def _broadcast_in_dim(ids, ins, outs, params):
    result = ids.dims(outs[0])
    operand = []
    for size, at in zip(ins[0], params["broadcast_dimensions"], strict=True):
        # A dim of size 1 stretched to n is not the dim of size n.
        operand.append(result[at] if size == outs[0][at] else (ids.new(size),))
    return [operand, *([] for _ in ins[1:])], [result]


def _reshape(ids, ins, outs, params):
    """Merge and split dims: [B, S, D] to [B*S, D] gives the first result dim the factors (B, S)."""
    if params.get("dimensions") is not None or 0 in ins[0]:
        return [ids.whole_dims(ins[0])], [ids.whole_dims(outs[0])]
    operand, result = [[] for _ in ins[0]], [[] for _ in outs[0]]
    i = j = 0
    left, right = 1, 1  # what is still to be read of operand dim i - 1 and of result dim j - 1
    while i < len(ins[0]) or j < len(outs[0]):
        if left == 1 and i < len(ins[0]):
            left, i = ins[0][i], i + 1
            if left == 1:
                operand[i - 1].append(ids.new(1))
                continue
        if right == 1 and j < len(outs[0]):
            right, j = outs[0][j], j + 1
            if right == 1:
                result[j - 1].append(ids.new(1))
                continue
        if left == 1 or right == 1:
            continue
        small, large = sorted((left, right))
        if large % small == 0:
            shared = ids.new(small)
            operand[i - 1].append(shared)
            result[j - 1].append(shared)
            left, right = left // small, right // small
            continue
        # 6 into 4: no factor is common. What is left on both sides up to where the products meet
        # again is one tangle, kept whole.
        operand[i - 1].append(ids.new(left, whole=True))
        result[j - 1].append(ids.new(right, whole=True))
        while left != right:
            if left < right:
                left, i = left * ins[0][i], i + 1
                operand[i - 1].append(ids.new(ins[0][i - 1], whole=True))
            else:
                right, j = right * outs[0][j], j + 1
                result[j - 1].append(ids.new(outs[0][j - 1], whole=True))
        left = right = 1
    return [[tuple(f) for f in operand]], [[tuple(f) for f in result]]


def _squeeze(ids, ins, outs, params):
    operand = ids.dims(ins[0])
    gone = {d % len(ins[0]) for d in params["dimensions"]}
    return [operand], [[f for d, f in enumerate(operand) if d not in gone]]


def _transpose(ids, ins, outs, params):
    operand = ids.dims(ins[0])
    return [operand], [[operand[d] for d in params["permutation"]]]


def _rev(ids, ins, outs, params):
    dims = ids.dims(ins[0])
    for d in params["dimensions"]:
        ids.whole.update(dims[d])
    return [dims], [dims]


def passing(ids, shape, result_shape, passes):
    """Pair the dims of two arrays of equal rank where `passes(d)`; keep the others apart, whole."""
    operand, result = [], []
    for d, (size, result_size) in enumerate(zip(shape, result_shape, strict=True)):
        if size == result_size and passes(d):
            operand.append((ids.new(size),))
            result.append(operand[-1])
        else:
            operand.append((ids.new(size, whole=True),))
            result.append((ids.new(result_size, whole=True),))
    return operand, result


def _slice(ids, ins, outs, params):
    strides = params["strides"] or (1,) * len(ins[0])
    operand, result = passing(ids, ins[0], outs[0], lambda d: strides[d] == 1)
    return [operand], [result]


def _pad(ids, ins, outs, params):
    config = params["padding_config"]
    operand, result = passing(ids, ins[0], outs[0], lambda d: tuple(config[d]) == (0, 0, 0))
    return [operand, []], [result]


def _concatenate(ids, ins, outs, params):
    at = params["dimension"]
    shared = ids.dims(outs[0])
    ids.whole.update(shared[at])
    operands = []
    for shape in ins:
        own = [(ids.new(shape[at], whole=True),)]
        operands.append(shared[:at] + own + shared[at + 1 :])
    return operands, [shared]


def _tile(ids, ins, outs, params):
    operand = ids.dims(ins[0])
    reps = params["reps"]
    own = [() if n == 1 else (ids.new(n),) for n in reps]
    # A dim laid out n times over is n times itself, n outermost.
    return [operand], [[(*times, *dim) for times, dim in zip(own, operand, strict=True)]]


def _stack(ids, ins, outs, params):
    shared = ids.dims(ins[0])
    at = params["axis"]
    return [shared for _ in ins], [[*shared[:at], (ids.new(len(ins), whole=True),), *shared[at:]]]


def _unstack(ids, ins, outs, params):
    operand = ids.dims(ins[0])
    at = params["axis"]
    ids.whole.update(operand[at])
    return [operand], [[f for d, f in enumerate(operand) if d != at] for _ in outs]


def _split(ids, ins, outs, params):
    at = params["axis"]
    shared = ids.dims(ins[0])
    ids.whole.update(shared[at])
    results = []
    for shape in outs:
        own = [(ids.new(shape[at], whole=True),)]
        results.append(shared[:at] + own + shared[at + 1 :])
    return [shared], results


def _as_result(key: str):
    """The rule of a parameter that is the shape of the result."""

    def on_shard(params, eqn, operands, result):
        return {**params, key: tuple(result)}

    return on_shard


def _limits_on_shard(params, eqn, operands, result):
    # A dim that is sharded is taken from end to end.
    limits = zip(params["limit_indices"], operands[0], strict=True)
    return {**params, "limit_indices": tuple(min(limit, size) for limit, size in limits)}


RULES = {
    "broadcast_in_dim": Rule(
        "view",
        _broadcast_in_dim,
        sharding="sharding",
        keeps_ids=True,
        is_piecewise=True,
        is_cheap=True,
    ),
    "reshape": Rule(
        "view",
        _reshape,
        _as_result("new_sizes"),
        sharding="sharding",
        keeps_ids=True,
        is_piecewise=True,
        keeps_stored=True,
        is_cheap=True,
    ),
    **{
        name: Rule(
            "view", relate, keeps_ids=True, is_piecewise=True, keeps_stored=True, is_cheap=True
        )
        for name, relate in (("squeeze", _squeeze), ("transpose", _transpose))
    },
    "slice": Rule(
        "view",
        _slice,
        _limits_on_shard,
        keeps_ids=True,
        is_piecewise=True,
        keeps_stored=True,
        is_cheap=True,
    ),
    "rev": Rule("view", _rev),
    "pad": Rule("view", _pad, keeps_ids=True),
    "concatenate": Rule("view", _concatenate, keeps_ids=True, is_piecewise=True),
    "split": Rule("view", _split, is_piecewise=True),
    "stack": Rule("view", _stack),
    "unstack": Rule("view", _unstack),
    "tile": Rule("view", _tile),
}
