"""A jaxpr evaluated beside the scopes that a walk left; what else is done, subclasses say.

Calls are inlined; remats, scans and branches are made anew around what their jaxprs become.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Literal
from jax.extend.source_info_util import current_name_stack, user_context

from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.alone import alone
from jaxpar.jaxprs.record import Scope
from jaxpar.jaxprs.scan import scan_parts

INLINE = frozenset({"jit", "pjit", "closed_call", "core_call", "call"})
REMATS = frozenset({"remat", "checkpoint", "remat2"})


class Evaluator:
    """Evaluates every equation as it is; a subclass says what else is to be done."""

    def __init__(self):
        """Start outside any equation."""
        self.trail: list[Any] = []

    @property
    def said(self) -> Any:
        """What is known of where it was asked for; of the call, where a cached jit has no lines."""
        return next((info for info in reversed(self.trail) if line_of(info)), self.trail[-1])

    @property
    def source(self) -> str:
        """The line of the user's code that asked for it."""
        return line_of(self.said)

    def run(self, jaxpr: Any, consts, scope: Scope, args) -> list:
        """Evaluate a jaxpr on one value an argument."""
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        memo: dict[Any, Any] = {}

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            info = eqn.source_info
            stack = current_name_stack() + info.name_stack
            self.trail.append(info)
            with user_context(self.said.traceback, name_stack=stack):
                operands = [read(a) for a in eqn.invars]
                results = self.equation(eqn, operands, scope.inner.get(index, []), scope, memo)
            self.trail.pop()
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(a) for a in jaxpr.outvars]

    def equation(self, eqn: Any, operands, inner: list[Scope], scope: Scope, memo: dict) -> list:
        """Evaluate one equation; `inner` are the scopes of its jaxprs, `memo` lasts for a body."""
        name, p = eqn.primitive.name, eqn.params
        if name in INLINE and inner:
            closed = p.get("jaxpr", p.get("call_jaxpr"))
            return self.run(closed.jaxpr, closed.consts, inner[0], operands)
        if name in REMATS and inner:
            return self.remat(p, operands, inner[0])
        if name == "scan":
            return self.scan(eqn, operands, inner[0], scope)
        if name == "cond":
            return self.cond(eqn, operands, inner, scope)
        return self.plain(eqn, operands, scope, memo)

    def plain(self, eqn: Any, operands, scope: Scope, memo: dict) -> list:
        """Evaluate an equation that is not looked into."""
        return as_it_is(eqn, operands)

    def remat(self, p, operands, inner: Scope) -> list:
        """Make the same remat around what is inside."""
        jaxpr = p["jaxpr"]
        consts = getattr(jaxpr, "consts", ())  # JAX 0.12 has no other kind of jaxpr
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)

        def body(*args):
            return self.run(jaxpr, consts, inner, args)

        return jax.checkpoint(body, prevent_cse=p["prevent_cse"], policy=p["policy"])(*operands)

    def scan(self, eqn: Any, operands, inner: Scope, scope: Scope) -> list:
        """Make the same loop around what is inside."""
        p = eqn.params
        consts, end = scan_parts(p)
        carries = end - consts
        fixed, closed = operands[:consts], p["jaxpr"]

        def body(carry, slices):
            results = self.run(closed.jaxpr, closed.consts, inner, [*fixed, *carry, *slices])
            return results[:carries], results[carries:]

        last, stacked = jax.lax.scan(
            body,
            operands[consts : consts + carries],
            operands[consts + carries :],
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*last, *stacked]

    def cond(self, eqn: Any, operands, inner: list[Scope], scope: Scope) -> list:
        """Make the same choice between what is inside."""
        index, *rest = operands

        def branch(closed, scope):
            return lambda *args: self.run(closed.jaxpr, closed.consts, scope, args)

        return jax.lax.switch(index, [*map(branch, eqn.params["branches"], inner)], *rest)


def as_it_is(eqn: Any, operands) -> list:
    """Evaluate an equation as it was traced."""
    if next(iter(jax.extend.core.jaxprs_in_params(eqn.params)), None) is not None:
        variables, function = alone(eqn)
        pairs = zip(eqn.invars, operands, strict=True)
        values = {v: x for v, x in pairs if not isinstance(v, Literal)}
        return list(function(*(values[v] for v in variables)))
    results = eqn.primitive.bind(*operands, **eqn.params)
    return list(results) if eqn.primitive.multiple_results else [results]
