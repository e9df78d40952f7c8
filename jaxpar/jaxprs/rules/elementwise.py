"""Primitives that work on each element by itself: equal positions are one dim.

The names are listed, not guessed from equal shapes: `sort`, `cumsum` and `cholesky` also keep the
shape, and are not elementwise.
"""

from __future__ import annotations

from jaxpar.jaxprs.rules.record import Rule

_PLAIN = """
acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clz complex conj cos cosh
digamma eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
is_finite le le_to lgamma log log1p log2 logistic lt lt_to ne nextafter one_minus_square polygamma
polynomial population_count pow real reduce_precision regularized_incomplete_beta round rsqrt sign
sin sinh sqrt tan tanh zeta
""".split()
_KEEP_IDS = "clamp max min stop_gradient".split()
"""These make ids in the same range, such as by what JAX does to an index before it reads there."""
_COMPUTE_IDS = """
abs add add_any and div integer_pow mul neg not or rem shift_left shift_right_arithmetic
shift_right_logical square sub xor
""".split()
"""These make other ids: with the offset of a table among several, or hashed into it."""
_PLACED = "reshard sharding_constraint".split()
"""These only say how an array is sharded."""


def same_shape(counter, ins, outs, params):
    """Equal positions of operands and result are one dim; of size 1 beside another, none."""
    full = counter.dims(outs[0])

    def operand(shape):
        # A scalar beside an array (a literal, a predicate, a clamp's bound) has no dim to relate,
        # and JAX 0.10 stretches dims of size 1 within the primitive.
        if len(shape) != len(full):
            return []
        return [
            full[d] if size == outs[0][d] else (counter.factor(size),)
            for d, size in enumerate(shape)
        ]

    return [operand(shape) for shape in ins], [full for _ in outs]


def _side_by_side(counter, ins, outs, params):
    # Operand i becomes result i; the pairs have nothing to do with one another.
    dims = [counter.dims(shape) for shape in ins]
    return dims, dims[: len(outs)]


def _bitcast(counter, ins, outs, params):
    # Between widths a trailing dim of bytes comes or goes; the dims before it pair up.
    shared = counter.dims(ins[0][: min(len(ins[0]), len(outs[0]))])
    extra = [counter.whole_dims(shape[len(shared) :]) for shape in (ins[0], outs[0])]
    return [shared + extra[0]], [shared + extra[1]]


_copy = Rule("cast", same_shape, ids="kept", is_piecewise=True, keeps_stored=True, is_cheap=True)

RULES = {
    **dict.fromkeys(_PLAIN, Rule("elementwise", same_shape, is_piecewise=True)),
    **dict.fromkeys(_KEEP_IDS, Rule("elementwise", same_shape, is_piecewise=True, ids="kept")),
    **dict.fromkeys(
        _COMPUTE_IDS, Rule("elementwise", same_shape, is_piecewise=True, ids="computed")
    ),
    # What it chooses by is none of what it holds.
    "select_n": Rule("elementwise", same_shape, is_piecewise=True, ids="kept", holds=(1, None)),
    "eq": Rule("elementwise", same_shape, is_piecewise=True, is_equality=True),
    **dict.fromkeys(
        _PLACED, Rule("annotation", same_shape, ids="kept", is_piecewise=True, is_cheap=True)
    ),
    **dict.fromkeys(("convert_element_type", "copy"), _copy),
    "optimization_barrier": Rule("annotation", _side_by_side, is_cheap=True, ids="sides"),
    "device_put": Rule("annotation", _side_by_side, ids="sides"),
    "bitcast_convert_type": Rule("view", _bitcast, looks_at_bits=True),
}
