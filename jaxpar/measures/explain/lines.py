"""The line of a person's code that uses each weight first, as the trace of the loss tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.extend.core import Literal, jaxprs_in_params

from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.source_lines import file_and_line, line_of
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.rules import rule_of

_MOVES = frozenset(
    "convert_element_type broadcast_in_dim reshape transpose slice dynamic_slice squeeze copy "
    "named ordered sharding_constraint reduce_precision".split()
)
"""Primitives that only move a weight: whoever uses what they give uses the weight."""


def first_lines(traced: TracedLoss) -> tuple[Mapping[str, str], str]:
    """(path -> "file:line" of the first operation that computes with it, the line of the first
    stack of layers or loop).

    A weight that the loss does not read is absent.
    """
    found: dict[str, str] = {}
    jaxpr, _ = open_jaxpr(traced.closed)
    loops: list[str] = []
    _walk(jaxpr, dict(zip(jaxpr.invars, traced.arguments, strict=True)), found, loops)
    return found, next(filter(None, loops), "")


def _walk(jaxpr: Any, paths: dict[Any, str], found: dict[str, str], loops: list[str]) -> None:
    """Note the first line for each path of a variable, in this jaxpr and those within."""
    for eqn in jaxpr.eqns:
        kind = rule_of(eqn).kind
        if kind in ("layers", "scan"):
            loops.append(file_and_line(line_of(eqn.source_info)))
        known = {n: paths[v] for n, v in enumerate(eqn.invars)
                 if not isinstance(v, Literal) and v in paths}  # fmt: skip
        if not known:
            if kind in ("layers", "scan", "while"):
                continue
        inner = [open_jaxpr(held)[0] for held in jaxprs_in_params(eqn.params)]
        for held in inner:
            shift = max(0, len(eqn.invars) - len(held.invars))
            _walk(
                held,
                {v: known[n + shift] for n, v in enumerate(held.invars) if n + shift in known},
                found,
                loops,
            )
        if not inner:
            if eqn.primitive.name in _MOVES and 0 in known:
                paths[eqn.outvars[0]] = known[0]
                continue
            line = file_and_line(line_of(eqn.source_info))
            for path in known.values():
                if line:
                    found.setdefault(path, line)
