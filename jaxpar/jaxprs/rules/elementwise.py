"""Primitives that work on each element by itself: equal positions are one dim.

The names are listed, not guessed from equal shapes: `sort`, `cumsum` and `cholesky` also keep the
shape, and are not elementwise.
"""

from __future__ import annotations

ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
clz complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp
exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le lgamma log log1p
logistic lt max mesh_cast min mul name ne neg nextafter not or polygamma population_count pow
random_gamma_grad real reduce_precision regularized_incomplete_beta rem reshard round rsqrt
select_n sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh
sqrt square stop_gradient sub tan tanh xor zeta
""".split()


def _elementwise(ids, ins, outs, params):
    full = ids.dims(outs[0])

    def operand(shape):
        # A scalar beside an array (a literal, a predicate, a clamp's bound) has no dim to relate,
        # and JAX 0.10 stretches dims of size 1 within the primitive.
        if len(shape) != len(full):
            return []
        return [full[d] if size == outs[0][d] else (ids.new(size),) for d, size in enumerate(shape)]

    return [operand(shape) for shape in ins], [full for _ in outs]


def _side_by_side(ids, ins, outs, params):
    # Operand i becomes result i; the pairs have nothing to do with one another.
    dims = [ids.dims(shape) for shape in ins]
    return dims, dims[: len(outs)]


def _bitcast(ids, ins, outs, params):
    # Between widths a trailing dim of bytes comes or goes; the dims before it pair up.
    shared = ids.dims(ins[0][: min(len(ins[0]), len(outs[0]))])
    extra = [ids.whole_dims(shape[len(shared) :]) for shape in (ins[0], outs[0])]
    return [shared + extra[0]], [shared + extra[1]]


RULES = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "optimization_barrier": _side_by_side,
    "device_put": _side_by_side,
    "bitcast_convert_type": _bitcast,
}
