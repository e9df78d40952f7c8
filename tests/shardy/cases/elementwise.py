"""Cases of what works on each element by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpar.core.annotations import USED, bind_named, bind_ordered
from jaxpar.core.mesh import MeshShape
from shardy.cases.arguments import bools, complexes, ints

_FLOATS = (
    "abs acos acosh asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf "
    "erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p log2 logistic neg "
    "one_minus_square round rsqrt sign sin sinh sqrt square stop_gradient tan tanh"
)
_PAIRS = (
    "add atan2 complex div eq ge gt igamma igamma_grad_a igammac le lt max min mul ne nextafter "
    "polygamma pow rem sub zeta"
)
_BITS = "bitwise_not clz population_count"
_PAIRS_OF_BITS = (
    "bitwise_and bitwise_or bitwise_xor shift_left shift_right_arithmetic shift_right_logical"
)


def _each(names, *arguments):
    """A case of each function of `jax.lax` of these names, those that this JAX has."""
    return {name: (getattr(lax, name), *arguments) for name in names.split() if hasattr(lax, name)}


_polynomial: Any = getattr(lax, "polynomial", None)

CASES = {
    **({"polynomial": (lambda x: _polynomial(x, (1.0, x)), (4, 6))} if _polynomial else {}),
    **_each(_FLOATS, (4, 6, 1)),
    **_each(_PAIRS, (4, 6), (4, 6)),
    **_each(_BITS, ints(4, 6)),
    **_each(_PAIRS_OF_BITS, ints(4, 6), ints(4, 6)),
    **_each("real imag conj", complexes(4, 6)),
    "integer power": (lambda x: lax.integer_pow(x, 5), (4, 6)),
    "betainc": (lax.betainc, (4, 6), (4, 6), (4, 6)),
    "reduce precision": (lambda x: lax.reduce_precision(x, 5, 10), (4, 6)),
    "a stretched operand": (lambda x, y: x - y, (4, 6), (4, 1)),
    "a scalar operand": (lambda x: x * 2.0, (4, 6)),
    "clamp": (lax.clamp, (4, 6), (4, 6), (4, 6)),
    "clamp between scalars": (lax.clamp, (), (4, 6), ()),
    "select": (lax.select_n, bools(4, 6), (4, 6), (4, 6)),
    "select by a scalar": (lax.select_n, bools(), (4, 6), (4, 6)),
    "in total order": (
        lambda x, y: [p.bind(x, y) for p in (lax.eq_to_p, lax.le_to_p, lax.lt_to_p)],
        (4, 6),
        (4, 6),
    ),
    "cotangents added": (jax.grad(lambda x: (jnp.sin(x) * jnp.cos(x)).sum()), (4, 6)),
    "convert": (lambda x: x.astype(jnp.bfloat16), (4, 6)),
    "copy": (jnp.array, (4, 6)),
    "bits": (lambda x: lax.bitcast_convert_type(x, np.int32), (4, 6)),
    "bytes": (lambda x: lax.bitcast_convert_type(x, np.int8), (4, 6)),
    "words of bytes": (
        lambda x: lax.bitcast_convert_type(x, np.int32),
        jax.ShapeDtypeStruct((5, 6, 4), np.int8),
    ),
    "barrier": (lambda *xs: lax.optimization_barrier(xs), (4, 6), (3,)),
    "device put": (lambda x: jax.device_put(x, jax.devices()[0]), (4, 6)),
    "sharding constraint": (
        lambda x: lax.with_sharding_constraint(
            x, jax.NamedSharding(MeshShape.parse("data=2").abstract, jax.P("data"))
        ),
        (4, 6),
    ),
    "named": (lambda x: bind_named(x, ("embed", "mlp"), USED), (4, 6)),
    "ordered": (lambda x: bind_ordered(x, 1), (4, 6)),
    "checkpoint name": (lambda x: checkpoint_name(x, "x"), (4, 6)),
}
