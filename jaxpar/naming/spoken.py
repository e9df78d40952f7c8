"""A loss, spoken aloud: computed as it is, while every product says what the dims of its parts are.

The jaxpr is evaluated equation by equation. What a matrix makes is named, as a model whose author
knew of jaxpar would have named it; what reads or writes the residual is announced as entering or
leaving a part of a block. So an unannotated model is laid out by the same seams as an annotated
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Literal
from jax.extend.source_info_util import current_name_stack, user_context

from jaxpar import seams
from jaxpar.factors.alone import alone
from jaxpar.naming.classes import Classes
from jaxpar.naming.record import Scope, Trace
from jaxpar.roles import ONE, UNNAMED

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
_INLINE = frozenset({"jit", "pjit", "closed_call", "core_call", "call"})


def speak(closed: Any, trace: Trace, names: Mapping[int, str], residual: frozenset[str], args):
    """Evaluate a loss on `args`, flat, naming what it makes.

    Args:
        closed: the loss's ClosedJaxpr.
        trace: from `relate`, of this very jaxpr.
        names: class -> name.
        residual: names of the widths that run through the whole network.
        args: one array an argument.
    """
    speaker = _Speaker(trace.classes, names, residual)
    return speaker.run(closed.jaxpr, closed.consts, trace.scope, args)


class _Speaker:
    def __init__(self, classes: Classes, names: Mapping[int, str], residual: frozenset[str]):
        self.classes, self.names, self.residual = classes, names, residual

    def spell(self, scope: Scope, atom: Any) -> tuple[str, ...]:
        """The names of an array's dims; of a dim with several factors, the outermost's."""
        spelled = []
        for dim in scope.dims[atom]:
            nodes = self.classes.resolve(dim)
            spelled.append(self.names.get(nodes[0], UNNAMED) if nodes else ONE)
        return tuple(spelled)

    def run(self, jaxpr, consts, scope: Scope, args) -> list:
        env = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        entered: dict[Any, Any] = {}

        def read(atom):
            return atom.val if isinstance(atom, Literal) else env[atom]

        for index, eqn in enumerate(jaxpr.eqns):
            info = eqn.source_info
            stack = current_name_stack() + info.name_stack
            with user_context(info.traceback, name_stack=stack):
                operands = [read(a) for a in eqn.invars]
                inner = scope.inner.get(index, [])
                results = self.equation(eqn, operands, inner, scope, entered)
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(a) for a in jaxpr.outvars]

    def equation(self, eqn, operands, inner: list[Scope], scope: Scope, entered) -> list:
        name, p = eqn.primitive.name, eqn.params
        if name in _INLINE and inner:
            closed = p.get("jaxpr", p.get("call_jaxpr"))
            return self.run(closed.jaxpr, closed.consts, inner[0], operands)
        if name in ("remat", "checkpoint", "remat2") and inner:
            return self.remat(p, operands, inner[0])
        if name == "scan":
            return self.scan(p, operands, inner[0])
        if name == "cond":
            return self.cond(p, operands, inner)
        if name in _PRODUCTS:
            operands = [
                self.enter(atom, value, scope, entered)
                for atom, value in zip(eqn.invars, operands, strict=True)
            ]
        if inner:
            variables, function = alone(eqn)
            pairs = zip(eqn.invars, operands, strict=True)
            values = {v: x for v, x in pairs if not isinstance(v, Literal)}
            return list(function(*(values[v] for v in variables)))
        results = eqn.primitive.bind(*operands, **p)
        results = list(results) if eqn.primitive.multiple_results else [results]
        if name in _PRODUCTS or (name == "gather" and self.is_lookup(eqn, scope)):
            results = [self.leave(v, r, scope) for v, r in zip(eqn.outvars, results, strict=True)]
        return results

    def enter(self, atom, value, scope, entered):
        if isinstance(atom, Literal) or atom in scope.weights:
            return value
        dims = self.spell(scope, atom)
        if not self.residual & set(dims) or UNNAMED in dims:
            return value
        if atom not in entered:
            entered[atom] = seams.entering(value, dims)
        return entered[atom]

    def leave(self, var, value, scope):
        dims = self.spell(scope, var)
        if var in scope.weights or all(d in (UNNAMED, ONE) for d in dims):
            return value
        if self.residual & set(dims) and UNNAMED not in dims:
            return seams.leaving(value, dims)
        return seams.named(value, dims)

    def is_lookup(self, eqn, scope) -> bool:
        return eqn.invars[0] in scope.weights

    def remat(self, p, operands, inner: Scope):
        jaxpr = p["jaxpr"]
        consts = getattr(jaxpr, "consts", ())
        open_jaxpr = getattr(jaxpr, "jaxpr", jaxpr)

        def body(*args):
            return self.run(open_jaxpr, consts, inner, args)

        return jax.checkpoint(body, prevent_cse=p["prevent_cse"], policy=p["policy"])(*operands)

    def scan(self, p, operands, inner: Scope):
        consts, carries = p["num_consts"], p["num_carry"]
        fixed = operands[:consts]
        closed = p["jaxpr"]

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

    def cond(self, p, operands, inner: list[Scope]):
        index, *rest = operands

        def branch(closed, scope):
            return lambda *args: self.run(closed.jaxpr, closed.consts, scope, args)

        return jax.lax.switch(index, [*map(branch, p["branches"], inner)], *rest)
