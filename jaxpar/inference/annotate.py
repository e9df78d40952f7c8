"""A loss, spoken aloud: computed as it is, while every product says what the dims of its parts are.

What a matrix makes is named, as a model whose author knew of jaxpar would have named it; what reads
or writes the residual is announced as entering or leaving a part of a block. So an unannotated
model is laid out by the same seams as an annotated one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.extend.core import Literal

from jaxpar.core import hooks
from jaxpar.core.roles import ONE, UNNAMED
from jaxpar.jaxprs.classes import Classes
from jaxpar.jaxprs.interpreter import Evaluator, as_it_is
from jaxpar.jaxprs.record import Scope, Trace
from jaxpar.jaxprs.scan import scan_parts

_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})


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


def is_grouped(eqn: Any) -> bool:
    """Whether an equation is a convolution of groups of channels."""
    p = eqn.params
    return eqn.primitive.name == "conv_general_dilated" and (
        p["feature_group_count"] > 1 or p["batch_group_count"] > 1
    )


def spell(classes: Classes, names: Mapping[int, str], scope: Scope, var: Any) -> tuple[str, ...]:
    """The names of a variable's dims; of a dim with several factors, the outermost's."""
    spelled = []
    for dim in scope.dims[var]:
        nodes = classes.resolve(dim)
        spelled.append(names.get(nodes[0], UNNAMED) if nodes else ONE)
    return tuple(spelled)


class _Speaker(Evaluator):
    def __init__(self, classes: Classes, names: Mapping[int, str], residual: frozenset[str]):
        super().__init__()
        self.classes, self.names, self.residual = classes, names, residual

    def plain(self, eqn, operands, scope, memo):
        is_product = eqn.primitive.name in _PRODUCTS
        if is_product:
            operands = [
                self.enter(atom, value, scope, memo)
                for atom, value in zip(eqn.invars, operands, strict=True)
            ]
        results = self.shared(eqn, operands, scope) or as_it_is(eqn, operands)
        is_lookup = eqn.primitive.name == "gather" and eqn.invars[0] in scope.weights
        if is_product or is_lookup:
            results = [self.leave(v, r, scope) for v, r in zip(eqn.outvars, results, strict=True)]
        return results

    def shared(self, eqn, operands, scope):
        """A grouped convolution, each device its own rows.

        Left to XLA the gradient of its filter is wrong where rows are split: only one device's
        share of it (a plain depthwise convolution under data parallelism, jax 0.10.2).
        """
        share = hooks.sharing()
        if share is None or not is_grouped(eqn):
            return None

        def alone(*operands):
            return as_it_is(eqn, operands)[0]

        dims = [spell(self.classes, self.names, scope, a) for a in eqn.invars]
        made = spell(self.classes, self.names, scope, eqn.outvars[0])
        return [share(alone, operands, dims, made)]

    def scan(self, eqn, operands, inner, scope):
        """A loop over layers fetches one layer's weights at a time, and again in backward."""
        fetch = hooks.fetching()
        p = eqn.params
        consts, first = scan_parts(p)
        carries = first - consts
        stacked = [v in scope.weights for v in eqn.invars[first:]]
        if fetch is None or not any(stacked):
            return super().scan(eqn, operands, inner, scope)
        closed = p["jaxpr"]
        fixed = operands[:consts]

        def body(carry, slices):
            fetched = [
                fetch(x, spell(self.classes, self.names, inner, v)) if is_weight else x
                for x, v, is_weight in zip(
                    slices, closed.jaxpr.invars[first:], stacked, strict=True
                )
            ]
            results = self.run(closed.jaxpr, closed.consts, inner, [*fixed, *carry, *fetched])
            return results[:carries], results[carries:]

        last, made = jax.lax.scan(
            hooks.rematerialized(body, "none", gathers=True),
            operands[consts:first],
            operands[first:],
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*last, *made]

    def enter(self, atom, value, scope, memo):
        if isinstance(atom, Literal) or atom in scope.weights:
            return value
        dims = spell(self.classes, self.names, scope, atom)
        if not self.residual & set(dims) or UNNAMED in dims:
            return value
        if atom not in memo:  # once for all that read it: one gather, one sum of its gradient
            memo[atom] = hooks.entering(value, dims)
        return memo[atom]

    def leave(self, var, value, scope):
        dims = spell(self.classes, self.names, scope, var)
        if var in scope.weights or all(d in (UNNAMED, ONE) for d in dims):
            return value
        if self.residual & set(dims) and UNNAMED not in dims:
            return hooks.leaving(value, dims)
        return hooks.named(value, dims)
