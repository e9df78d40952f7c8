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

from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.jaxprs.interpreter import Here, Interpreter, as_it_is, bound, solver_of
from jaxpar.jaxprs.rules import rule_of

_DTYPES = ("new_dtype", "preferred_element_type", "dtype")
_COMBINERS = ("jaxpr", "update_jaxpr")
"""Parameters that hold the function of two numbers which a reduction or a scatter repeats."""


def evaluate_wide(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr on arguments of which some are wider than it was traced for.

    Functions with derivative rules of their own are differentiated as they are computed.

    >>> closed = jax.make_jaxpr(lambda x: x.astype("float32") / 3)(jnp.ones((), "float32"))
    >>> with jax.enable_x64(True):
    ...     print(evaluate_wide(closed.jaxpr, closed.consts, [jnp.ones((), "float64")])[0].dtype)
    float64
    """
    return _Wide().run(jaxpr, consts, list(map(_widened, args)))


class _Wide(Interpreter):
    """Evaluates a jaxpr in float64."""

    def constant(self, value):
        """A constant in float64."""
        return _widened(value)

    def literal(self, atom):
        """A literal in float64."""
        # JAX keeps a literal as a number that knows its dtype, and will not take another.
        aval: Any = atom.aval
        return _widened(np.asarray(atom.val, aval.dtype))

    def equation(self, eqn, operands, here):
        """An equation's results in float64."""
        return list(map(_widened, super().equation(eqn, operands, here)))

    def custom(self, eqn, operands, here):
        """The function itself, in float64, unless it reads the bits of its operands."""
        if rule_of(eqn).looks_at_bits:
            return _as_written(eqn, operands)
        return self.call(eqn, operands, here)

    def solve(self, eqn, operands, here):
        """The solution of a linear system as its solver computes it."""
        held, given = solver_of(eqn)
        return self.run_held(held, [operands[k] for k in given])

    def remat(self, eqn, operands, here):
        """The function itself, without rematerialisation."""
        # Nothing is saved by it where it is judged, and its policy may know dtypes.
        return self.call(eqn, operands, here)

    def leaf(self, eqn, operands, here: Here):
        """An operation's results, its dtypes widened; where it reads bits, as it was written."""
        name = eqn.primitive.name
        pairs = zip(operands, eqn.invars, strict=True)
        if name == "reduce_precision":
            return operands
        if rule_of(eqn).looks_at_bits or not any(_is_wider(x, a) for x, a in pairs):
            return _as_written(eqn, operands)
        params = {k: wide_dtype(v) if k in _DTYPES else v for k, v in eqn.params.items()}
        params |= {k: _retraced(v) for k in _COMBINERS if (v := params.get(k)) is not None}
        return bound(eqn, operands, params)


def _retraced(combiner):
    """The jaxpr of a function of numbers, in float64: it knows one dtype. Closed if it was."""
    jaxpr, consts = open_jaxpr(combiner)
    wide = [jax.ShapeDtypeStruct(v.aval.shape, wide_dtype(v.aval.dtype)) for v in jaxpr.invars]
    made = jax.make_jaxpr(lambda *args: evaluate_wide(jaxpr, consts, args))(*wide)
    return made if hasattr(combiner, "jaxpr") else open_jaxpr(made)[0]


def _as_written(eqn, operands) -> list:
    """The results of an equation in its own dtypes."""
    operands = [
        x.astype(a.aval.dtype) if _is_wider(x, a) else x
        for x, a in zip(operands, eqn.invars, strict=True)
    ]
    return as_it_is(eqn, operands)


def _is_wider(x, atom) -> bool:
    """Whether a value is a float of another dtype than its atom was traced with."""
    if not hasattr(x, "dtype"):
        return False
    return x.dtype != atom.aval.dtype and jnp.issubdtype(x.dtype, jnp.inexact)


def _widened(x):
    """An array in the wide dtype of its kind; keys and integers as they are."""
    if _is_key(x):
        return x
    # Not what JAX calls the result's type: a weak float32, of a mask in 1.0 - mask, would be wide.
    given = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    dtype = wide_dtype(given)
    return x if dtype == given else jnp.asarray(x, dtype)


def _is_key(x) -> bool:
    """Whether a value is a typed random key, or of another extended dtype."""
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.extended)


def wide_dtype(dtype):
    """float64 for floats, complex128 for complex numbers, else the dtype itself."""
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return dtype
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype("float64")
    return np.dtype("complex128") if jnp.issubdtype(dtype, jnp.complexfloating) else dtype
