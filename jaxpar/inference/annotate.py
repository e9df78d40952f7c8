"""Annotating a loss that names nothing: every product gets names for the dims of its arrays.

What a matrix makes is named, as a model whose author knew of jaxpar would have named it; what reads
or writes the residual is announced as entering or leaving a part of a block. So a model that nobody
annotated becomes a jaxpr like that of an annotated one, and everything after knows one kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax.extend.core import ClosedJaxpr, Literal

from jaxpar.core import hooks
from jaxpar.core.roles import ONE, UNNAMED
from jaxpar.jaxprs.interpreter import Interpreter, as_it_is
from jaxpar.jaxprs.record import Trace
from jaxpar.jaxprs.rules import rule_of
from jaxpar.jaxprs.rules.contract import is_grouped
from jaxpar.jaxprs.spell import spell


def annotated(
    closed: ClosedJaxpr, trace: Trace, names: Mapping[int, str], residual: frozenset[str]
) -> ClosedJaxpr:
    """The same loss as a ClosedJaxpr, its products annotated with names of dims.

    Args:
        closed: the loss.
        trace: from `relate`, of this very jaxpr.
        names: class -> name.
        residual: names of the widths that run through the whole network.
    """

    def function(*args):
        annotator = _Annotator(trace, names, residual)
        return annotator.run(closed.jaxpr, closed.consts, args, trace.scope)

    return jax.make_jaxpr(function)(*closed.in_avals)


class _Annotator(Interpreter):
    """Evaluates with names; beside each jaxpr is the `Scope` of its variables."""

    def __init__(self, trace: Trace, names: Mapping[int, str], residual: frozenset[str]):
        super().__init__()
        self.classes, self.names, self.residual = trace.classes, names, residual

    def leaf(self, eqn, operands, here):
        """An operation's results; products and lookups of weights have their arrays named."""
        scope, rule = here.beside, rule_of(eqn)
        is_product = rule.kind == "product" and rule.is_piecewise
        if is_product:
            pairs = zip(eqn.invars, operands, strict=True)
            operands = [self.enter(atom, value, scope, here.memo) for atom, value in pairs]
        if is_grouped(eqn):
            pairs = zip(eqn.invars, operands, strict=True)
            operands = [self.name(atom, value, scope) for atom, value in pairs]
        results = as_it_is(eqn, operands)
        is_lookup = rule.kind == "lookup" and eqn.invars[0] in scope.weights
        if is_product or is_lookup:
            results = [self.leave(v, r, scope) for v, r in zip(eqn.outvars, results, strict=True)]
        return results

    def dims(self, scope, var) -> tuple[str, ...]:
        """The names of a variable's dims."""
        return spell(self.classes, self.names, scope, var)

    def name(self, atom, value, scope):
        """What a grouped convolution reads, named, unless it is a weight."""
        if isinstance(atom, Literal) or atom in scope.weights:
            return value
        return hooks.named(value, self.dims(scope, atom))

    def enter(self, atom, value, scope, memo):
        """What a product reads, announced as entering a part where it has the residual's width."""
        if isinstance(atom, Literal) or atom in scope.weights:
            return value
        dims = self.dims(scope, atom)
        if not self.residual & set(dims) or UNNAMED in dims:
            return value
        if atom not in memo:  # once for all that read it: one gather, one sum of its gradient
            memo[atom] = hooks.entering(value, dims)
        return memo[atom]

    def leave(self, var, value, scope):
        """What a product makes, named, and announced as leaving where it is of the residual."""
        dims = self.dims(scope, var)
        if var in scope.weights or all(d in (UNNAMED, ONE) for d in dims):
            return value
        if self.residual & set(dims) and UNNAMED not in dims:
            return hooks.leaving(value, dims)
        return hooks.named(value, dims)
