"""Primitives that move, add, cut or merge dims without computing: where each dim goes.

A dim that is cut, padded, reversed or joined to another must be whole; every other dim passes.
"""

from __future__ import annotations

from math import gcd, prod

from jaxpar.jaxprs.rules.record import Rule


def _broadcast_in_dim(counter, ins, outs, params):
    result = counter.dims(outs[0])
    operand = []
    for size, at in zip(ins[0], params["broadcast_dimensions"], strict=True):
        # A dim of size 1 stretched to n is not the dim of size n.
        operand.append(result[at] if size == outs[0][at] else (counter.factor(size),))
    return [operand, *([] for _ in ins[1:])], [result]


def _reshape(counter, ins, outs, params):
    """Merge and split dims: [B, S, D] to [B*S, D] gives the first result dim the factors (B, S)."""
    if 0 in ins[0]:
        return [counter.whole_dims(ins[0])], [counter.whole_dims(outs[0])]
    order = params.get("dimensions") or range(len(ins[0]))  # the dims as they are read
    operand = _Written(counter, [ins[0][d] for d in order])
    result = _Written(counter, outs[0])
    for left, right in _runs(operand.sizes, result.sizes):
        # From both ends, as long as there is a common factor. Of 6 into 4, 2 is common and what is
        # left, 3 into 2, is one tangle up to where the products meet again.
        operand.share(result, left, right, 0)
        operand.share(result, left, right, -1)
        operand.tangle(left)
        result.tangle(right)
    dims = dict(zip(order, operand.dims(), strict=True))
    return [[dims[d] for d in range(len(dims))]], [result.dims()]


def _runs(before, after):
    """The shortest runs of dims of two shapes that hold equally many elements; no dim of size 1."""
    left = [d for d, size in enumerate(before) if size != 1]
    right = [d for d, size in enumerate(after) if size != 1]
    while left:
        mine, theirs = [left.pop(0)], [right.pop(0)]
        while (here := prod(before[d] for d in mine)) != (there := prod(after[d] for d in theirs)):
            if here < there:
                mine.append(left.pop(0))
            else:
                theirs.append(right.pop(0))
        yield mine, theirs


class _Written:
    """A shape as it is being written in factors, from the outermost and the innermost inwards."""

    def __init__(self, counter, sizes):
        """Start with nothing written; of a dim of size 1, all."""
        self.ids, self.sizes = counter, sizes
        self.left = list(sizes)
        self.outer = [[counter.factor(1)] if size == 1 else [] for size in sizes]
        self.inner: list[list[int]] = [[] for _ in sizes]

    def share(self, other, mine, theirs, end):
        """Write common factors at one end of two runs of dims; what is written out is taken off."""
        while mine and theirs:
            a, b = mine[end], theirs[end]
            if (size := gcd(self.left[a], other.left[b])) == 1:
                return
            factor = self.ids.factor(size)
            self._write(factor, mine, end)
            other._write(factor, theirs, end)

    def _write(self, factor, dims, end):
        d = dims[end]
        (self.outer if end == 0 else self.inner)[d].append(factor)
        self.left[d] //= self.ids.sizes[factor]
        if self.left[d] == 1:
            dims.pop(end)

    def tangle(self, dims):
        """Write what is left of these dims as factors of their own, which must be whole."""
        for d in dims:
            self.outer[d].append(self.ids.factor(self.left[d], whole=True))

    def dims(self):
        """The factors of each dim, major to minor."""
        return [
            (*outer, *reversed(inner)) for outer, inner in zip(self.outer, self.inner, strict=True)
        ]


def _squeeze(counter, ins, outs, params):
    operand = counter.dims(ins[0])
    gone = {d % len(ins[0]) for d in params["dimensions"]}
    return [operand], [[f for d, f in enumerate(operand) if d not in gone]]


def _transpose(counter, ins, outs, params):
    operand = counter.dims(ins[0])
    return [operand], [[operand[d] for d in params["permutation"]]]


def _rev(counter, ins, outs, params):
    dims = counter.dims(ins[0])
    for d in params["dimensions"]:
        counter.whole.update(dims[d])
    return [dims], [dims]


def passing(counter, shape, result_shape, passes):
    """Pair the dims of two arrays of equal rank where `passes(d)`; keep the others apart, whole."""
    operand, result = [], []
    for d, (size, result_size) in enumerate(zip(shape, result_shape, strict=True)):
        if size == result_size and passes(d):
            operand.append((counter.factor(size),))
            result.append(operand[-1])
        else:
            operand.append((counter.factor(size, whole=True),))
            result.append((counter.factor(result_size, whole=True),))
    return operand, result


def _slice(counter, ins, outs, params):
    strides = params["strides"] or (1,) * len(ins[0])
    operand, result = passing(counter, ins[0], outs[0], lambda d: strides[d] == 1)
    return [operand], [result]


def _pad(counter, ins, outs, params):
    config = params["padding_config"]
    operand, result = passing(counter, ins[0], outs[0], lambda d: tuple(config[d]) == (0, 0, 0))
    return [operand, []], [result]


def _concatenate(counter, ins, outs, params):
    at = params["dimension"]
    shared = counter.dims(outs[0])
    counter.whole.update(shared[at])
    operands = []
    for shape in ins:
        own = [(counter.factor(shape[at], whole=True),)]
        operands.append(shared[:at] + own + shared[at + 1 :])
    return operands, [shared]


def _tile(counter, ins, outs, params):
    operand = counter.dims(ins[0])
    reps = params["reps"]
    own = [() if n == 1 else (counter.factor(n),) for n in reps]
    # A dim laid out n times over is n times itself, n outermost.
    return [operand], [[(*times, *dim) for times, dim in zip(own, operand, strict=True)]]


def _stack(counter, ins, outs, params):
    shared = counter.dims(ins[0])
    at = params["axis"]
    return [shared for _ in ins], [
        [*shared[:at], (counter.factor(len(ins), whole=True),), *shared[at:]]
    ]


def _unstack(counter, ins, outs, params):
    operand = counter.dims(ins[0])
    at = params["axis"]
    counter.whole.update(operand[at])
    return [operand], [[f for d, f in enumerate(operand) if d != at] for _ in outs]


def _split(counter, ins, outs, params):
    at = params["axis"]
    shared = counter.dims(ins[0])
    counter.whole.update(shared[at])
    results = []
    for shape in outs:
        own = [(counter.factor(shape[at], whole=True),)]
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
        ids="kept",
        is_piecewise=True,
        is_cheap=True,
    ),
    "reshape": Rule(
        "view",
        _reshape,
        _as_result("new_sizes"),
        sharding="sharding",
        ids="kept",
        is_piecewise=True,
        keeps_stored=True,
        is_cheap=True,
    ),
    **{
        name: Rule("view", relate, ids="kept", is_piecewise=True, keeps_stored=True, is_cheap=True)
        for name, relate in (("squeeze", _squeeze), ("transpose", _transpose))
    },
    "slice": Rule(
        "view",
        _slice,
        _limits_on_shard,
        ids="kept",
        is_piecewise=True,
        keeps_stored=True,
        is_cheap=True,
    ),
    "rev": Rule("view", _rev, ids="kept"),
    "pad": Rule("view", _pad, ids="kept", is_piecewise=True),
    "concatenate": Rule("view", _concatenate, ids="kept", is_piecewise=True),
    "split": Rule("view", _split, is_piecewise=True, ids="kept"),
    "stack": Rule("view", _stack, ids="kept"),
    "unstack": Rule("view", _unstack, ids="kept"),
    "tile": Rule("view", _tile, ids="kept"),
}
