"""The one interpreter of jaxprs: equation by equation, with what they hold made anew around it.

Calls are inlined; remats, loops and branches are built again around what their jaxprs become; all
else is computed as it is. A subclass says what is different: at a leaf (`leaf`), at a loop's carry
(`carried`), at what a loop takes apart or puts together (`slices`, `stacked`). Beside a jaxpr a
subclass may have something of its own for each jaxpr that is reached, such as the dims of its
variables; the interpreter hands it down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import Literal, jaxprs_in_params
from jax.extend.source_info_util import current_name_stack, user_context

from jaxpar.core import hooks
from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.alone import alone
from jaxpar.jaxprs.rules import rule_of


@dataclass(frozen=True)
class Here:
    """Where an equation is evaluated.

    Attributes:
        beside: what the subclass has beside the jaxpr that the equation stands in, or None.
        inner: the same for each jaxpr that the equation holds, in their order.
        memo: what lasts for one run of that jaxpr, empty at its start.
    """

    beside: Any
    inner: Sequence[Any]
    memo: dict[Any, Any] = field(default_factory=dict)

    def within(self, index: int = 0) -> Any:
        """What the subclass has beside the `index`-th jaxpr of the equation; None for nothing."""
        return self.inner[index] if len(self.inner) > index else None


class Interpreter:
    """Evaluates every equation as it is; a subclass says what else is to be done."""

    through: Callable[..., Any] = staticmethod(hooks.layers)
    """How a stack of layers is run; it is a `layers` primitive again unless a subclass differs."""

    def __init__(self):
        """Start outside any equation."""
        self.trail: list[Any] = []

    @property
    def source_info(self) -> Any:
        """JAX's source info of the equation; of the call around it, where a cached jit has none."""
        known = (eqn.source_info for eqn in reversed(self.trail))
        return next((info for info in known if line_of(info)), self.trail[-1].source_info)

    @property
    def source(self) -> str:
        """The line of the user's code that asked for the equation, or ""."""
        return line_of(self.source_info) if self.trail else ""

    def run(self, jaxpr: Any, consts, args, beside: Any = None) -> list:
        """The results of an open jaxpr, given one value for each constant and argument."""
        env = dict(zip(jaxpr.constvars, map(self.constant, consts), strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        memo: dict[Any, Any] = {}

        def read(atom):
            return self.literal(atom) if isinstance(atom, Literal) else env[atom]

        for index, eqn in self.wanted(jaxpr):
            self.trail.append(eqn)
            stack = current_name_stack() + eqn.source_info.name_stack
            with user_context(self.source_info.traceback, name_stack=stack):
                operands = [read(atom) for atom in eqn.invars]
                here = Here(beside, self.inner(beside, index), memo)
                results = self.equation(eqn, operands, here)
            self.trail.pop()
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def run_held(self, held: Any, args, beside: Any = None) -> list:
        """As `run`, of a jaxpr as an equation holds it, closed or not."""
        jaxpr, consts = open_jaxpr(held)
        return self.run(jaxpr, consts, list(args), beside)

    def constant(self, value: Any) -> Any:
        """The value that a jaxpr's constant is evaluated with."""
        return value

    def literal(self, atom: Literal) -> Any:
        """The value that a literal of an equation is evaluated with."""
        return atom.val

    def wanted(self, jaxpr: Any) -> Iterable[tuple[int, Any]]:
        """The equations to evaluate, each with its index."""
        return enumerate(jaxpr.eqns)

    def inner(self, beside: Any, index: int) -> Sequence[Any]:
        """What the subclass has beside each jaxpr in the equation of that index, in order."""
        return () if beside is None else beside.inner.get(index, ())

    def equation(self, eqn: Any, operands, here: Here) -> list:
        """The results of one equation."""
        kind = rule_of(eqn).kind
        evaluate = getattr(self, _METHODS[kind]) if kind in _METHODS else self.leaf
        return evaluate(eqn, operands, here)

    def leaf(self, eqn: Any, operands, here: Here) -> list:
        """The results of an equation that holds no jaxpr, or whose jaxpr is not evaluated."""
        del here
        return as_it_is(eqn, operands)

    def call(self, eqn: Any, operands, here: Here) -> list:
        """The results of the jaxpr that is called, inlined."""
        return self.run_held(held_by(eqn), operands, here.within())

    def custom(self, eqn: Any, operands, here: Here) -> list:
        """The results of a function with its own derivative rule: a leaf."""
        return self.leaf(eqn, operands, here)

    def solve(self, eqn: Any, operands, here: Here) -> list:
        """The solution of a linear system: a leaf."""
        return self.leaf(eqn, operands, here)

    def shards(self, eqn: Any, operands, here: Here) -> list:
        """The results of a shard_map: a leaf."""
        return self.leaf(eqn, operands, here)

    def remat(self, eqn: Any, operands, here: Here) -> list:
        """The results, by the same remat of the evaluated jaxpr."""

        def body(*args):
            return self.run_held(held_by(eqn), args, here.within())

        return computed_again(eqn, body, operands)

    def scan(self, eqn: Any, operands, here: Here) -> list:
        """The results, by the same scan of the evaluated body."""
        consts, end = scan_parts(eqn.params)
        count, held = end - consts, eqn.params["jaxpr"]
        jaxpr, inner = open_jaxpr(held)[0], here.within()
        fixed, init, xs = operands[:consts], operands[consts:end], operands[end:]

        def body(carry, slices):
            slices = self.slices(slices, jaxpr.invars[end:], inner)
            results = self.run_held(held, [*fixed, *carry, *slices], inner)
            carry = self.carried(results[:count], jaxpr.invars[consts:end], inner)
            return carry, self.stacked(results[count:], jaxpr.outvars[count:], inner)

        init = self.carried(init, jaxpr.invars[consts:end], inner)
        last, made = loop(eqn, self.loop_body(eqn, body, operands), init, self.scanned(xs))
        return [*last, *self.put_together(made)]

    def carried(self, values: list, variables, beside: Any) -> list:
        """A loop's carry as the next turn takes it, given as a turn, or the start, leaves it."""
        del variables, beside
        return values

    def scanned(self, stacks: list) -> list:
        """The stacks that a loop scans over, as the new loop scans over them."""
        return stacks

    def slices(self, slices: list, variables, beside: Any) -> list:
        """One turn's slices of these stacks, as the body uses them."""
        del variables, beside
        return slices

    def stacked(self, values: list, variables, beside: Any) -> list:
        """One turn's results that a loop stacks, as the new loop stacks them."""
        del variables, beside
        return values

    def put_together(self, stacks: list) -> list:
        """The stacked results of a loop, as later equations use them."""
        return stacks

    def loop_body(self, eqn: Any, body: Callable, operands) -> Callable:
        """The body of a loop, perhaps with a policy of what is kept for backward."""
        del eqn, operands
        return body

    def while_loop(self, eqn: Any, operands, here: Here) -> list:
        """The results, by the same while loop of the evaluated condition and body."""
        p = eqn.params
        first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        variables = open_jaxpr(p["body_jaxpr"])[0].invars[p["body_nconsts"] :]

        def condition(held):
            return self.run_held(p["cond_jaxpr"], [*operands[:first], *held], here.within(0))[0]

        def body(held):
            args = [*operands[first:second], *held]
            results = self.run_held(p["body_jaxpr"], args, here.within(1))
            return self.carried(results, variables, here.within(1))

        init = self.carried(operands[second:], variables, here.within(1))
        return list(jax.lax.while_loop(condition, body, init))

    def cond(self, eqn: Any, operands, here: Here) -> list:
        """The results, by the same conditional of the evaluated branches."""
        index, *rest = operands

        def branch(number, held):
            return lambda *args: self.run_held(held, args, here.within(number))

        branches = [branch(k, held) for k, held in enumerate(eqn.params["branches"])]
        return list(jax.lax.switch(index, branches, *rest))

    def layers(self, eqn: Any, operands, here: Here) -> list:
        """The results of a stack of layers, run by this interpreter's `through`."""
        p = eqn.params
        stacked = p["consts"] + p["stacked"]
        fixed, stacks = operands[: p["consts"]], operands[p["consts"] : stacked]

        def block(slices, carry):
            return self.run_held(p["body"], [*fixed, *slices, *carry], here.within())

        carry, names = operands[stacked:], list(p["names"])
        how = {"remat": p["remat"], "unroll": p["unroll"]}
        return self.through(block, stacks, carry, dims=names, **how)


_METHODS = {
    kind: {"while": "while_loop"}.get(kind, kind)
    for kind in ("call", "custom", "solve", "shards", "remat", "scan", "while", "cond", "layers")
}
"""Kind of a primitive that holds jaxprs -> the method that evaluates it."""


def held_by(eqn: Any) -> Any:
    """The jaxpr that a call, a remat or a function with its own derivative holds."""
    p = eqn.params
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call", "callee")
    return next(p[key] for key in keys if key in p)


def computed_again(eqn: Any, body: Callable, operands) -> list:
    """The results of a remat's body, under the same remat.

    An operand that is itself a result, as NNX returns all the weights that a module was given, is
    handed on outside of it: what the body makes of a weight would be kept for backward.
    """
    p, jaxpr = eqn.params, open_jaxpr(held_by(eqn))[0]
    places = {v: k for k, v in enumerate(jaxpr.invars)}
    passed = [None if isinstance(v, Literal) else places.get(v) for v in jaxpr.outvars]

    def others(*args):
        return [x for x, place in zip(body(*args), passed, strict=True) if place is None]

    computed = jax.checkpoint(others, prevent_cse=p["prevent_cse"], policy=p["policy"])
    made = iter(computed(*operands))
    return [next(made) if place is None else operands[place] for place in passed]


def solver_of(eqn: Any) -> tuple[Any, list[int]]:
    """The jaxpr by which an equation solves a linear system, and which operands it is given.

    The operands are what the system's function, its transpose, the solver and its transpose close
    over, each in its turn, and then the right-hand sides, which the solver takes last.
    """
    counts, held = eqn.params["const_lengths"], eqn.params["jaxprs"].solve
    before = counts.matvec + counts.vecmat
    return held, [*range(before, before + counts.solve), *range(sum(counts), len(eqn.invars))]


def loop(eqn: Any, body: Callable, init: Any, xs: Any) -> tuple[Any, Any]:
    """A scan like that of an equation: (last carry, stacked results) of another body."""
    p = eqn.params
    return jax.lax.scan(
        body, init, xs, length=p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )


def as_it_is(eqn: Any, operands) -> list:
    """The results of an equation as it was traced."""
    if next(iter(jaxprs_in_params(eqn.params)), None) is not None:
        variables, function = alone(eqn)
        pairs = zip(eqn.invars, operands, strict=True)
        values = {v: x for v, x in pairs if not isinstance(v, Literal)}
        return list(function(*(values[v] for v in variables)))
    return bound(eqn, operands, eqn.params)


def bound(eqn: Any, operands, params) -> list:
    """The results of an equation's primitive with other parameters."""
    results = eqn.primitive.bind(*operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]
