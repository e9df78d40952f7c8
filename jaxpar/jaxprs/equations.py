"""Every equation of a jaxpr, those of the jaxprs in it too, and which are run and how often."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.rules import rule_of


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yield (equation, how often it runs), callers before what they call.

    A loop that ends by a condition counts as one turn, and a branch as taken each time.
    """
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn, times
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner, times * turns(eqn))


def turns(eqn: Any) -> int:
    """How often one run of an equation runs what it holds."""
    kind = rule_of(eqn).kind
    if kind == "scan":
        return eqn.params["length"]
    if kind == "layers":
        return eqn.invars[eqn.params["consts"]].aval.shape[0]
    return 1


def needed(jaxpr: Any) -> list[bool]:
    """For every equation of an open jaxpr, whether anything asks for its results."""
    asked = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    flags = []
    for eqn in reversed(jaxpr.eqns):
        flag = bool(eqn.effects) or any(v in asked for v in eqn.outvars)
        if flag:
            asked.update(v for v in eqn.invars if not isinstance(v, Literal))
        flags.append(flag)
    return flags[::-1]


def refuse_overflow(called: str, jaxpr: Any) -> None:
    """Refuse a program with an array of more bytes than 64 bits count: XLA would end the process.

    Args:
        called: the model's name.
        jaxpr: what is to be compiled.
    """
    for eqn, _ in equations(jaxpr):
        for value in (*eqn.invars, *eqn.outvars):
            shape, dtype = getattr(value.aval, "shape", ()), getattr(value.aval, "dtype", None)
            if prod(shape) * getattr(dtype, "itemsize", 0) >= 2**63:
                line = line_of(eqn.source_info) or "jaxpar's own"
                raise RequestError(
                    f"model '{called}': '{eqn.primitive.name}' at {line} has an array of shape "
                    f"{tuple(shape)}, of more bytes than 64 bits count: use smaller sizes"
                )
