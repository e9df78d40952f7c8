"""A jaxpr computed in float64, whatever float dtypes it was written in.

Attention in JAX's own library casts its scores to float32, layers remember the dtype that they were
made with, and a person's code says `astype`. Told to hold more digits, such code does not listen;
its jaxpr does. Floats are wide from where they begin: an argument, a constant, a whole number or
the bits of a random draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal
from jax.extend.source_info_util import current_name_stack, user_context

from jaxpar.jaxprs.interpreter import as_it_is
from jaxpar.jaxprs.scan import scan_parts

_CALLS = frozenset(
    "jit pjit closed_call core_call call remat checkpoint remat2 custom_jvp_call custom_vjp_call "
    "custom_vjp_call_jaxpr".split()
)
_DTYPES = ("new_dtype", "preferred_element_type", "dtype")
_SCATTERS = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter_add": lax.scatter_add,
    "scatter-mul": lax.scatter_mul,
    "scatter_mul": lax.scatter_mul,
    "scatter_min": lax.scatter_min,
    "scatter_max": lax.scatter_max,
}
_SCATTER_PARAMS = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
# These look at the bits of a number, which another width has not got.
_NARROW = frozenset("bitcast_convert_type shard_map pure_callback io_callback custom_lin".split())


def evaluate_wide(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr on arguments of which some are wider than it was traced for.

    Functions with derivative rules of their own are differentiated as they are computed.

    >>> closed = jax.make_jaxpr(lambda x: x.astype("float32") / 3)(jnp.ones((), "float32"))
    >>> with jax.enable_x64(True):
    ...     print(evaluate_wide(closed.jaxpr, closed.consts, [jnp.ones((), "float64")])[0].dtype)
    float64
    """
    env = dict(zip(jaxpr.constvars, map(_widened, consts), strict=True))
    env |= dict(zip(jaxpr.invars, map(_widened, args), strict=True))

    def read(atom):
        # JAX keeps a literal as a number that knows its dtype, and will not take another.
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        info = eqn.source_info
        stack = current_name_stack() + info.name_stack
        with user_context(info.traceback, name_stack=stack):
            results = map(_widened, _equation(eqn, [read(a) for a in eqn.invars]))
        env |= dict(zip(eqn.outvars, results, strict=True))
    return [_widened(read(a)) for a in jaxpr.outvars]


def _equation(eqn, operands) -> list:
    name, p = eqn.primitive.name, eqn.params
    if name in _NARROW:
        return _as_written(eqn, operands)
    if name in _CALLS:
        inner = p.get("call_jaxpr", p.get("jaxpr", p.get("fun_jaxpr")))
        return _inside(inner, operands)
    if name == "scan":
        return _scan(p, operands)
    if name == "while":
        return _while(p, operands)
    if name == "cond":
        index, *rest = operands
        branches = [lambda *xs, b=b: _inside(b, xs) for b in p["branches"]]
        return list(lax.switch(index, branches, *rest))
    if name == "reduce_precision":
        return operands
    if not any(_is_wider(x, a) for x, a in zip(operands, eqn.invars, strict=True)):
        return _as_written(eqn, operands)
    operands = [_widened(x) for x in operands]
    if name in _SCATTERS:
        return [_SCATTERS[name](*operands, **{k: p[k] for k in _SCATTER_PARAMS})]
    params = {k: _wide_dtype(v) if k in _DTYPES else v for k, v in p.items()}
    results = eqn.primitive.bind(*operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _as_written(eqn, operands) -> list:
    """Compute an equation in its own dtypes."""
    operands = [
        x.astype(a.aval.dtype) if _is_wider(x, a) else x
        for x, a in zip(operands, eqn.invars, strict=True)
    ]
    return as_it_is(eqn, operands)


def _inside(jaxpr, operands) -> list:
    return evaluate_wide(
        getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()), list(operands)
    )


def _scan(p, operands) -> list:
    consts, end = scan_parts(p)
    carries = end - consts
    operands = [_widened(x) for x in operands]
    fixed = operands[:consts]

    def body(carry, slices):
        results = _inside(p["jaxpr"], [*fixed, *carry, *slices])
        return results[:carries], results[carries:]

    last, stacked = lax.scan(
        body,
        operands[consts : consts + carries],
        operands[consts + carries :],
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
    )
    return [*last, *stacked]


def _while(p, operands) -> list:
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    operands = [_widened(x) for x in operands]
    return list(
        lax.while_loop(
            lambda held: _inside(p["cond_jaxpr"], [*operands[:first], *held])[0],
            lambda held: _inside(p["body_jaxpr"], [*operands[first:second], *held]),
            operands[second:],
        )
    )


def _is_wider(x, atom) -> bool:
    if isinstance(atom, Literal) or not hasattr(x, "dtype"):
        return False
    return x.dtype != atom.aval.dtype and jnp.issubdtype(x.dtype, jnp.inexact)


def _widened(x):
    dtype = _wide_dtype(jnp.result_type(x)) if not _is_key(x) else None
    return x if dtype is None or dtype == jnp.result_type(x) else jnp.asarray(x, dtype)


def _is_key(x) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)


def _wide_dtype(dtype):
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype("float64")
    return np.dtype("complex128") if jnp.issubdtype(dtype, jnp.complexfloating) else dtype
