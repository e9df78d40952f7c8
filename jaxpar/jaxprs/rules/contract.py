"""Primitives that sum, compare or scan along dims: what is contracted, and what must be whole.

A contracted or reduced dim is marked with how it is reduced. A dim that is scanned, sorted or
slid over by a window must be whole.
"""

from __future__ import annotations

from math import prod

from jaxpar.jaxprs.rules.record import Rule
from jaxpar.jaxprs.rules.reshape import passing


def _dot_general(ids, ins, outs, params):
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    lhs = ids.dims(ins[0])
    rhs: list = [None] * len(ins[1])
    for left, right in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        rhs[right] = lhs[left]
    rhs = [f or (ids.new(size),) for f, size in zip(rhs, ins[1], strict=True)]
    for d in lhs_contract:
        ids.reduced[lhs[d][0]] = "sum"
    result = [lhs[d] for d in lhs_batch]
    result += [f for d, f in enumerate(lhs) if d not in (*lhs_contract, *lhs_batch)]
    result += [f for d, f in enumerate(rhs) if d not in (*rhs_contract, *rhs_batch)]
    return [lhs, rhs], [result]


def _ragged_dot_general(ids, ins, outs, params):
    """Products of groups of rows, each with a matrix of its own; sizes of groups come third.

    Of the three kinds only the one that models write is related: ragged rows that stay.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    ragged, groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    lhs, rhs = ids.dims(ins[0]), ids.dims(ins[1])
    sizes = ids.whole_dims(ins[2])
    ids.whole.update(lhs[ragged[0]])
    if not groups or ragged[0] in (*lhs_contract, *lhs_batch):
        for dims in (lhs, rhs):
            ids.whole.update(f for dim in dims for f in dim)
        return [lhs, rhs, sizes], [ids.whole_dims(outs[0])]
    ids.whole.update(rhs[groups[0]])
    for left, right in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        rhs[right] = lhs[left]
    for d in lhs_contract:
        ids.reduced[lhs[d][0]] = "sum"
    result = [lhs[d] for d in lhs_batch]
    result += [f for d, f in enumerate(lhs) if d not in (*lhs_contract, *lhs_batch)]
    gone = (*rhs_contract, *rhs_batch, *groups)
    result += [f for d, f in enumerate(rhs) if d not in gone]
    return [lhs, rhs, sizes], [result]


def _matrices(ids, ins, outs, params):
    """Decompositions and solutions of matrices: the dims before the last two are a batch."""
    lead = ids.dims(ins[0][:-2])

    def dims(shape):
        if tuple(shape[: len(lead)]) != tuple(ins[0][:-2]):
            return ids.whole_dims(shape)
        return [*lead, *ids.whole_dims(shape[len(lead) :])]

    return [dims(shape) for shape in ins], [dims(shape) for shape in outs]


def _fft(ids, ins, outs, params):
    first = len(ins[0]) - len(params["fft_lengths"])
    operand, result = passing(ids, ins[0], outs[0], lambda d: d < first)
    return [operand], [result]


def _conv_general_dilated(ids, ins, outs, params):
    numbers = params["dimension_numbers"]
    (b, c, *space), (o, i, *kernel) = numbers.lhs_spec, numbers.rhs_spec
    lhs, rhs = ids.dims(ins[0]), ids.dims(ins[1])
    result: list = [None] * len(outs[0])
    result_b, result_o, *result_space = numbers.out_spec
    for d, at in zip(space, result_space, strict=True):
        result[at] = (ids.new(outs[0][at], whole=True),)
        ids.whole.update(lhs[d])
    for d in kernel:
        ids.whole.update(rhs[d])
    result[result_b], result[result_o] = lhs[b], rhs[o]
    if params["feature_group_count"] == 1 and params["batch_group_count"] == 1:
        rhs[i] = lhs[c]
        ids.reduced[lhs[c][0]] = "sum"
    else:
        # Grouped: a piece of the channels needs the matching piece of the kernel, group by group.
        ids.whole.update((*lhs[c], *rhs[i], *rhs[o]))
        if params["batch_group_count"] != 1:
            ids.whole.update(lhs[b])
            result[result_b] = (ids.new(outs[0][result_b], whole=True),)
    return [lhs, rhs], [result]


def _reduce(kind):
    def rule(ids, ins, outs, params):
        axes = {d % len(ins[0]) for d in params["axes"]}
        operand = ids.dims(ins[0])
        for d in axes:
            if kind is None:
                ids.whole.update(operand[d])
            else:
                ids.reduced[operand[d][0]] = kind
        return [operand], [[f for d, f in enumerate(operand) if d not in axes] for _ in outs]

    return rule


def _general_reduce(ids, ins, outs, params):
    # Operands first, then as many scalars to start from; the computation may be anything.
    axes = params["dimensions"]
    count = len(ins) // 2
    operand = ids.dims(ins[0])
    for d in axes:
        ids.whole.update(operand[d])
    result = [f for d, f in enumerate(operand) if d not in axes]
    return [operand] * count + [[]] * count, [result] * len(outs)


def _along(key):
    def rule(ids, ins, outs, params):
        dims = ids.dims(ins[0])
        ids.whole.update(dims[params[key]])
        return [dims] * len(ins), [dims] * len(outs)

    return rule


def _top_k(ids, ins, outs, params):
    dims = ids.dims(ins[0])
    at = params.get("axis", -1) % len(dims)
    ids.whole.update(dims[at])
    own = (ids.new(outs[0][at], whole=True),)
    return [dims], [[*dims[:at], own, *dims[at + 1 :]] for _ in outs]


def _window(ids, ins, outs, params):
    still = [1] * len(ins[0])

    def passes(d):
        window = params["window_dimensions"][d]
        strides = (params.get("window_strides") or still)[d]
        dilation = (params.get("window_dilation") or still)[d]
        base = (params.get("base_dilation") or still)[d]
        return window == strides == dilation == base == 1 and not any(params["padding"][d])

    # The arrays slid over have the result's rank; a general reduce_window also takes scalars.
    operand, result = passing(ids, ins[0], outs[0], passes)
    return [operand if len(shape) == len(operand) else [] for shape in ins], [result for _ in outs]


def _dot_flops(eqn) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    return 2 * prod(eqn.outvars[0].aval.shape) * _sizes(eqn.invars[0], contract)


def _ragged_flops(eqn) -> int:
    (contract, _), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return 2 * prod(eqn.outvars[0].aval.shape) * _sizes(eqn.invars[0], contract)


def _conv_flops(eqn) -> int:
    # What one result is a sum over: the filter's own inputs, and its window.
    out, *summed = eqn.params["dimension_numbers"].rhs_spec
    del out
    return 2 * prod(eqn.outvars[0].aval.shape) * _sizes(eqn.invars[1], summed)


def _sizes(var, dims) -> int:
    return prod(var.aval.shape[d] for d in dims)


def is_grouped(eqn) -> bool:
    """Whether an equation is a convolution of groups of channels, or of rows."""
    p = eqn.params
    return p.get("feature_group_count", 1) > 1 or p.get("batch_group_count", 1) > 1


RULES = {
    "dot_general": Rule(
        "product", _dot_general, sharding="out_sharding", is_piecewise=True, flops=_dot_flops
    ),
    "conv_general_dilated": Rule(
        "product",
        _conv_general_dilated,
        sharding="out_sharding",
        is_piecewise=True,
        flops=_conv_flops,
    ),
    **dict.fromkeys(
        ("ragged_dot_general", "ragged_dot"),
        Rule("product", _ragged_dot_general, flops=_ragged_flops),
    ),
    "fft": Rule("other", _fft),
    **dict.fromkeys(
        "cholesky triangular_solve lu qr geqrf svd eigh eig householder_product".split(),
        Rule("other", _matrices),
    ),
    **{
        f"reduce_{how}": Rule("reduce", _reduce(how), is_piecewise=how in ("sum", "max", "min"))
        for how in ("sum", "max", "min", "prod", "and", "or")
    },
    "argmax": Rule("reduce", _reduce(None)),
    "argmin": Rule("reduce", _reduce(None)),
    "reduce": Rule("reduce", _general_reduce),
    "sort": Rule("other", _along("dimension")),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), Rule("other", _along("axis"))
    ),
    "top_k": Rule("other", _top_k),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"),
        Rule("other", _window),
    ),
}
