"""Primitives that sum, compare or scan along dims: what is contracted, and what must be whole.

A contracted or reduced dim is marked with how it is reduced. A dim that is scanned, sorted or
slid over by a window must be whole.
"""

from __future__ import annotations

from math import prod

from jaxpar.jaxprs.rules.record import Rule
from jaxpar.jaxprs.rules.reshape import passing


def _dot_general(counter, ins, outs, params):
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    lhs = counter.dims(ins[0])
    rhs: list = [None] * len(ins[1])
    for left, right in zip((*lhs_contract, *lhs_batch), (*rhs_contract, *rhs_batch), strict=True):
        rhs[right] = lhs[left]
    rhs = [f or (counter.factor(size),) for f, size in zip(rhs, ins[1], strict=True)]
    for d in lhs_contract:
        counter.reduced[lhs[d][0]] = "sum"
    result = [lhs[d] for d in lhs_batch]
    result += [f for d, f in enumerate(lhs) if d not in (*lhs_contract, *lhs_batch)]
    result += [f for d, f in enumerate(rhs) if d not in (*rhs_contract, *rhs_batch)]
    return [lhs, rhs], [result]


def _ragged_dot_general(counter, ins, outs, params):
    """Products in which the rows of one dim fall into groups; the sizes of the groups come third.

    Which group a row is of depends on how many come before it: that dim and the groups are whole.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    about = numbers.dot_dimension_numbers
    (lhs, rhs), (result,) = _dot_general(counter, ins[:2], outs, {"dimension_numbers": about})
    (ragged,), groups = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    counter.whole.update(lhs[ragged])
    counter.reduced.pop(lhs[ragged][0], None)
    for d in groups:
        counter.whole.update(rhs[d])
        result.remove(rhs[d])
    if len(result) < len(outs[0]):  # the rows are summed over, group by group
        result.insert(0, (counter.factor(outs[0][0], whole=True),))
    sizes = counter.whole_dims(ins[2])
    if len(sizes) > 1:
        # There may be other sizes for each place in the batch, and in the dims before the rows.
        (contract, _), (batch, _) = about
        free = [d for d in range(len(lhs)) if d not in (*contract, *batch)]
        (own,) = (dims for dims in map(list, (contract, batch, free)) if ragged in dims)
        before = own[: own.index(ragged)]
        sizes[:-1] = [lhs[d] for d in (before if ragged in batch else [*batch, *before])]
    return [lhs, rhs, sizes], [result]


def _matrices(core):
    """Decompositions and solutions: the first operand's dims before the last `core` are a batch."""

    def rule(counter, ins, outs, params):
        batch = tuple(ins[0][: len(ins[0]) - core])
        lead = counter.dims(batch)

        def dims(shape):
            if tuple(shape[: len(lead)]) != batch:
                return counter.whole_dims(shape)
            return [*lead, *counter.whole_dims(shape[len(lead) :])]

        return [dims(shape) for shape in ins], [dims(shape) for shape in outs]

    return rule


def _fft(counter, ins, outs, params):
    first = len(ins[0]) - len(params["fft_lengths"])
    operand, result = passing(counter, ins[0], outs[0], lambda d: d < first)
    return [operand], [result]


def _conv_general_dilated(counter, ins, outs, params):
    numbers = params["dimension_numbers"]
    (b, c, *space), (o, i, *kernel) = numbers.lhs_spec, numbers.rhs_spec
    lhs, rhs = counter.dims(ins[0]), counter.dims(ins[1])
    result: list = [None] * len(outs[0])
    result_b, result_o, *result_space = numbers.out_spec
    for d, at in zip(space, result_space, strict=True):
        result[at] = (counter.factor(outs[0][at], whole=True),)
        counter.whole.update(lhs[d])
    for d in kernel:
        counter.whole.update(rhs[d])
    # Groups are the outer factor of what they divide, and of what comes out; a device that has some
    # of the groups needs their kernels alone. A depthwise convolution has a group for each channel.
    summed = counter.factor(ins[1][i])
    counter.reduced[summed] = "sum"
    lhs[c], rhs[i] = (summed,), (summed,)
    groups = max(params["feature_group_count"], params["batch_group_count"])
    if groups > 1:
        group = counter.factor(groups)
        rhs[o] = (group, counter.factor(ins[1][o] // groups))
        if params["feature_group_count"] > 1:
            lhs[c] = (group, summed)
        else:
            lhs[b] = (group, counter.factor(ins[0][b] // groups))
    result[result_b], result[result_o] = lhs[b][-1:], rhs[o]
    return [lhs, rhs], [result]


def _conv_on_shard(params, eqn, operands, result):
    """The groups that a device has, told by what its shards hold."""
    numbers = params["dimension_numbers"]
    (b, c, *_), (_, i, *_) = numbers.lhs_spec, numbers.rhs_spec
    lhs, rhs = operands
    features, rows = lhs[c] // rhs[i], lhs[b] // result[numbers.out_spec[0]]
    return {**params, "feature_group_count": features, "batch_group_count": rows}


def _reduce(kind):
    def rule(counter, ins, outs, params):
        axes = {d % len(ins[0]) for d in params["axes"]}
        operand = counter.dims(ins[0])
        for d in axes:
            if kind is None:
                counter.whole.update(operand[d])
            else:
                counter.reduced[operand[d][0]] = kind
        return [operand], [[f for d, f in enumerate(operand) if d not in axes] for _ in outs]

    return rule


def _general_reduce(counter, ins, outs, params):
    # Operands first, then as many scalars to start from; the computation may be anything.
    axes = params["dimensions"]
    count = len(ins) // 2
    operand = counter.dims(ins[0])
    for d in axes:
        counter.whole.update(operand[d])
    result = [f for d, f in enumerate(operand) if d not in axes]
    return [operand] * count + [[]] * count, [result] * len(outs)


def _along(key):
    def rule(counter, ins, outs, params):
        dims = counter.dims(ins[0])
        counter.whole.update(dims[params[key]])
        return [dims] * len(ins), [dims] * len(outs)

    return rule


def _top_k(key):
    def rule(counter, ins, outs, params):
        dims = counter.dims(ins[0])
        at = params.get(key, -1) % len(dims)
        counter.whole.update(dims[at])
        own = (counter.factor(outs[0][at], whole=True),)
        return [dims], [[*dims[:at], own, *dims[at + 1 :]] for _ in outs]

    return rule


def _is_still(params, d):
    """Whether a window neither slides nor stretches along a dim: each element is its own window."""
    keys = ("window_dimensions", "window_strides", "window_dilation", "base_dilation")
    sizes = [params[key][d] for key in keys if params.get(key) is not None]
    return set(sizes) == {1} and not any(params["padding"][d])


def _window(counter, ins, outs, params):
    # The arrays slid over have the result's rank; a general reduce_window also takes scalars.
    operand, result = passing(counter, ins[0], outs[0], lambda d: _is_still(params, d))
    return [operand if len(shape) == len(operand) else [] for shape in ins], [result for _ in outs]


def _select_and_scatter_add(counter, ins, outs, params):
    # The gradient of a window of maxima: one element of a window gets what came for it.
    source, operand = passing(counter, ins[0], ins[1], lambda d: _is_still(params, d))
    return [source, operand], [operand]


def _select_and_gather_add(counter, ins, outs, params):
    # And its derivative: a window gives the tangent of its greatest element.
    operand, result = passing(counter, ins[1], outs[0], lambda d: _is_still(params, d))
    return [operand, operand], [result]


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


def _fused_attention(counter, ins, outs, params):
    """Queries (batch, positions, heads, group, width), keys and values (batch, positions, heads,
    width), and log-sums (batch, heads, group, positions): rows and heads are each on their own."""
    q = counter.dims(ins[0])
    batch, length, heads, group, width = q
    counter.whole.update((*length, *width))
    keys = (counter.factor(ins[1][1], whole=True),)
    k, v = (
        [batch, keys, heads, width],
        [batch, keys, heads, (counter.factor(ins[2][3], whole=True),)],
    )
    # Keys are all heads of a group's, and so are the devices that have some of it.
    counter.whole.update(group)
    y, log = [*q[:4], v[3]], [batch, heads, group, length]
    if len(ins) == 3:
        return [q, k, v], [y, log]
    return [q, k, v, y, log, y], [q, k, v]


def _fused_flops(products: int):
    def flops(eqn) -> int:
        q, k = (var.aval.shape for var in eqn.invars[:2])
        seen = 2 if eqn.params["causal"] else 1
        return 2 * products * prod(q) * k[1] // seen

    return flops


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
        _conv_on_shard,
        sharding="out_sharding",
        is_piecewise=True,
        flops=_conv_flops,
    ),
    "ragged_dot_general": Rule("product", _ragged_dot_general, flops=_ragged_flops),
    "fused_attention": Rule("product", _fused_attention, is_opaque=True, flops=_fused_flops(2)),
    "fused_attention_gradient": Rule(
        "product", _fused_attention, is_opaque=True, flops=_fused_flops(5)
    ),
    "fft": Rule("other", _fft),
    **dict.fromkeys(
        "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu ormqr qr "
        "schur svd triangular_solve tridiagonal".split(),
        Rule("other", _matrices(2)),
    ),
    **dict.fromkeys(("lu_pivots_to_permutation", "tridiagonal_solve"), Rule("other", _matrices(1))),
    # A sum of what a mask leaves is how one id is picked among several.
    "reduce_sum": Rule("reduce", _reduce("sum"), is_piecewise=True, ids="computed"),
    **{
        f"reduce_{how}": Rule("reduce", _reduce(how), is_piecewise=True, ids="kept")
        for how in ("max", "min")
    },
    **{f"reduce_{how}": Rule("reduce", _reduce(how)) for how in ("prod", "and", "or")},
    # Devices have no collective that would put these together.
    **dict.fromkeys(("argmax", "argmin", "reduce_xor"), Rule("reduce", _reduce(None))),
    "reduce": Rule("reduce", _general_reduce),
    "sort": Rule("other", _along("dimension"), ids="sides"),
    **dict.fromkeys(("cummax", "cummin"), Rule("other", _along("axis"), ids="kept")),
    **dict.fromkeys(("cumsum", "cumprod", "cumlogsumexp"), Rule("other", _along("axis"))),
    "top_k": Rule("other", _top_k("axis")),
    "approx_top_k": Rule("other", _top_k("reduction_dimension")),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"),
        Rule("other", _window),
    ),
    "select_and_scatter_add": Rule("other", _select_and_scatter_add),
    "select_and_gather_add": Rule("other", _select_and_gather_add),
}
