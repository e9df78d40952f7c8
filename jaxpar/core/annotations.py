"""A model's annotations as primitives: they are in its jaxpr, and nowhere else.

Four identities to whoever only computes: `named` (names for an array's dims), `layers` (a stack of
equal layers, one after another), `attend` (attention as one function) and `ordered` (rows in the
order of their positions). Whoever evaluates the jaxpr decides what else they are: a sharding
constraint, a pipeline, a ring. JAX's own caches see all of it, as they see any primitive.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxpar.core.errors import RequestError, expect
from jaxpar.core.roles import UNNAMED

NAMED, LAYERS, ATTEND, ORDERED = "named", "layers", "attend", "ordered"
"""The primitives' names, as they stand in a jaxpr."""

USED, ENTERING, LEAVING = "used", "entering", "leaving"
"""Kinds of a name: of an array in use; of what a part of a block reads; of what one made."""

_TURNED = {USED: USED, ENTERING: LEAVING, LEAVING: ENTERING}
"""What the cotangent of an array is, given what the array is."""

_named = Primitive(NAMED)
_ordered = Primitive(ORDERED)
_layers = Primitive(LAYERS)
_layers.multiple_results = True
_attend = Primitive(ATTEND)


def bind_named(x: Any, dims: tuple[str, ...], says: str) -> jax.Array:
    """`x` itself, with a name for each of its dims; `says` is USED, ENTERING or LEAVING.

    Raises:
        RequestError: as many names as dims were not given.
    """
    x = jnp.asarray(x)
    expect(
        "the names of an array's dims", dims, tuple | list, 'give a word each, ("batch", "width")'
    )
    for name in dims:
        expect("the name of a dim", name, str, "give a word")
    if len(dims) != x.ndim:
        raise RequestError(
            f"an array of shape {x.shape} was given {len(dims)} names, {tuple(dims)}: name every "
            "dim"
        )
    return _named.bind(x, names=tuple(dims), says=says)


def bind_ordered(x: Any, axis: int) -> jax.Array:
    """`x` itself, dim `axis` of which runs over the positions of a sequence in order."""
    x = jnp.asarray(x)
    return _ordered.bind(x, axis=axis % x.ndim)


def bind_layers(operands: list[Any], evaluate: Callable, **how: Any) -> list[jax.Array]:
    """The carry after a stack of layers, flat, from its operands.

    Args:
        operands: constants, then stacks with a leading dim of layers, then the carry, all flat.
        evaluate: `evaluate(*operands, **how)`, what it computes, for whoever knows no better.
        how: `body` (a ClosedJaxpr from constants, one layer's slices and the carry to the carry),
            `consts` and `stacked` (how many operands are which), `names` (of the dims of each array
            of the carry), `remat`, `unroll`.
    """
    return _layers.bind(*operands, evaluate=evaluate, **how)


def bind_attend(q: Any, k: Any, v: Any, evaluate: Callable, **how: Any) -> jax.Array:
    """Attention; `evaluate(q, k, v, **how)` computes it for whoever knows no better.

    `how` is `causal`, `implementation` and `scale`, as in `hooks.attention`.
    """
    return _attend.bind(*map(jnp.asarray, (q, k, v)), evaluate=evaluate, **how)


def _identity(x, **_):
    """The first operand: what every annotation computes."""
    return x


def _transposed(bind_again: Callable):
    """The rule of a linear primitive whose transpose is another of its kind."""

    def jvp(primals, tangents, **params):
        (x,), (t,) = primals, tangents
        y = bind_again(x, **params)
        return y, t if isinstance(t, ad.Zero) else bind_again(t, **params)

    return jvp


def _as_evaluated(primitive: Primitive, many: bool) -> None:
    """Let a primitive be what it evaluates to wherever JAX transforms or compiles it."""

    def function(*operands, evaluate, **how):
        return evaluate(*operands, **how)

    def jvp(primals, tangents, **how):
        tangents = [
            jnp.zeros(x.shape, _dtype_of(t)) if isinstance(t, ad.Zero) and _is_float(x) else t
            for x, t in zip(primals, tangents, strict=True)
        ]
        moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]

        def of_moving(*values):
            full = list(primals)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return function(*full, **how)

        return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])

    def batch(operands, where, **how):
        results = jax.vmap(partial(function, **how), in_axes=where)(*operands)
        return results, [0] * len(results) if many else 0

    primitive.def_impl(lambda *operands, **how: jax.jit(partial(function, **how))(*operands))
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=many))


def _dtype_of(zero: Any) -> Any:
    """The dtype of a symbolic zero, which may be that of no number."""
    return zero.aval.dtype


def _is_float(x) -> bool:
    """Whether an array has a gradient by its dtype."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _named_batch(operands, where, *, names: tuple[str, ...], says: str):
    """Under vmap: the same annotation, with an unnamed dim where the mapped one is."""
    (x,), (d,) = operands, where
    return _named.bind(x, names=(*names[:d], UNNAMED, *names[d:]), says=says), d


def _named_transpose(cotangent, x, *, names, says):
    """A gradient is annotated as its array is, what entered a part of a block leaving it."""
    del x
    if isinstance(cotangent, ad.Zero):
        return [cotangent]
    return [_named.bind(cotangent, names=names, says=_TURNED[says])]


_named.def_impl(_identity)
_named.def_abstract_eval(_identity)
ad.primitive_jvps[_named] = _transposed(_named.bind)
ad.primitive_transposes[_named] = _named_transpose
batching.primitive_batchers[_named] = _named_batch
mlir.register_lowering(_named, lambda ctx, x, **_: [x])

_ordered.def_impl(_identity)
_ordered.def_abstract_eval(_identity)
ad.primitive_jvps[_ordered] = _transposed(_ordered.bind)
ad.primitive_transposes[_ordered] = lambda cotangent, x, **_: [cotangent]
batching.primitive_batchers[_ordered] = lambda operands, where, *, axis: (
    _ordered.bind(operands[0], axis=axis + (where[0] <= axis)),
    where[0],
)
mlir.register_lowering(_ordered, lambda ctx, x, **_: [x])

_layers.def_abstract_eval(
    lambda *operands, consts, stacked, **_: [x.update() for x in operands[consts + stacked :]]
)
_as_evaluated(_layers, many=True)
_attend.def_abstract_eval(
    lambda q, k, v, **_: q.update(shape=(*q.shape[:-1], v.shape[-1]), dtype=v.dtype)
)
_as_evaluated(_attend, many=False)
