"""One equation of a jaxpr as a function, with whatever jaxprs and derivative rules it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun, jaxprs_in_params


def alone(eqn: Any) -> tuple[tuple[Any, ...], Callable[..., list]]:
    """The distinct variables that an equation reads, and the function from them to its results.

    >>> import jax
    >>> eqn = jax.make_jaxpr(jax.nn.relu)(1.0).eqns[0]
    >>> variables, function = alone(eqn)
    >>> len(variables), float(function(-2.0)[0])
    (1, 0.0)
    """
    variables = tuple(dict.fromkeys(v for v in eqn.invars if not isinstance(v, Literal)))
    inner: Any = next(iter(jaxprs_in_params(eqn.params)), None)
    debug_info = getattr(inner, "jaxpr", inner).debug_info
    jaxpr = Jaxpr((), variables, eqn.outvars, [eqn], eqn.effects, debug_info)
    return variables, jaxpr_as_fun(ClosedJaxpr(jaxpr, ()))
