"""The walk: every equation of a jaxpr relates the dims it reads to those it makes.

First-order equations by the table of `jaxpar.jaxprs.rules`; those that hold jaxprs by the rules of
`jaxpar.jaxprs.control`. A jaxpr that is called twice is walked twice, so that one use of a helper
says nothing of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs import control
from jaxpar.jaxprs.classes import Classes, Dim
from jaxpar.jaxprs.equations import needed
from jaxpar.jaxprs.facts import Facts, is_integer, made_by
from jaxpar.jaxprs.record import FIELD, Operand, Scope, Trace, Use
from jaxpar.jaxprs.rules import factors, is_known, rule_of


def relate(closed: Any, arguments: Mapping[str, Any], weights: Sequence[str]) -> Trace:
    """Which dims of a loss are the same, and what is done with them.

    Args:
        closed: the loss's ClosedJaxpr.
        arguments: path -> abstract array, in the order of the jaxpr's arguments; of the batch's
            fields, with `FIELD` before the path.
        weights: those of the paths that are learned.
    """
    walk = Walk()
    scope = Scope()
    for var, path in zip(closed.jaxpr.invars, arguments, strict=True):
        scope.dims[var] = walk.classes.dims(var.aval.shape)
        ids = is_integer(var.aval) and path not in weights
        walk.facts[var] = Facts(
            weight=path in weights,
            other=path not in weights and (path.startswith(FIELD) or not _is_float(var.aval)),
            ids=ids,
            fields=frozenset({path} if ids else ()),
            floats=frozenset({path} if path.startswith(FIELD) and _is_float(var.aval) else ()),
            path=path if path in weights else None,
        )
    walk.body(closed.jaxpr, closed.consts, scope, times=1, outer=None)
    dims = {
        path: tuple(scope.dims[var])
        for var, path in zip(closed.jaxpr.invars, arguments, strict=True)
    }
    return Trace(
        classes=walk.classes,
        scope=scope,
        arguments=dims,
        uses=tuple(walk.uses),
        unknown=dict(walk.unknown),
        stacked=tuple(walk.stacked),
        turned=tuple(walk.turned),
        below={path: n for path, n in walk.below.items() if path not in walk.computed},
    )


class Walk:
    """The state of one walk through a jaxpr."""

    def __init__(self):
        """Start with nothing seen."""
        self.classes = Classes()
        self.facts: dict[Any, Facts] = {}
        self.uses: list[Use] = []
        self.unknown: dict[str, Any] = {}
        self.stacked: list[Dim] = []
        self.turned: list[Dim] = []
        self.below: dict[str, tuple[int, int]] = {}
        self.computed: frozenset[str] = frozenset()
        """Fields of floats that something is computed from, so that not all of them are ids."""

    def dims(self, scope: Scope, atom: Any) -> list[Dim]:
        """The dims of what an equation reads."""
        if isinstance(atom, Literal):
            return self.classes.dims(np.shape(atom.val))
        return scope.dims[atom]

    def fact(self, atom: Any) -> Facts:
        """What an atom was made from."""
        return Facts() if isinstance(atom, Literal) else self.facts.get(atom, Facts())

    def body(self, jaxpr: Any, consts: Sequence[Any], scope: Scope, *, times: int, outer) -> None:
        """Walk a jaxpr whose arguments have dims in `scope` already."""
        for var in jaxpr.invars:
            if self.fact(var).is_weight:
                scope.weights[var] = self.fact(var).path
        for var in jaxpr.constvars:
            scope.dims.setdefault(var, self.classes.dims(var.aval.shape))
        for (index, eqn), is_needed in zip(enumerate(jaxpr.eqns), needed(jaxpr), strict=True):
            where = eqn.source_info if line_of(eqn.source_info) else outer
            rule = control.RULES.get(rule_of(eqn).kind)
            if rule is not None:
                rule(self, eqn, index, scope, times, where)
            else:
                self.plain(eqn, scope, times if is_needed else 0, where)
            facts = [self.fact(a) for a in eqn.invars]
            made = made_by(eqn, facts)
            if rule is None:
                self.computed |= _floats(facts) - _floats(made) - _fields(made)
            for var, fact in zip(eqn.outvars, made, strict=True):
                self.facts.setdefault(var, fact)
                if self.facts[var].is_weight:
                    scope.weights[var] = self.facts[var].path

    def inner(self, closed_or_open, operands, facts, scope, index, times, where) -> list:
        """Walk a jaxpr inside an equation; returns (dims, facts) of each of its results."""
        jaxpr = getattr(closed_or_open, "jaxpr", closed_or_open)
        child = Scope()
        scope.inner.setdefault(index, []).append(child)
        for var, dims, fact in zip(jaxpr.invars, operands, facts, strict=True):
            child.dims[var] = list(dims)
            self.facts[var] = fact
        for eqn in jaxpr.eqns:  # facts of an earlier walk through the same jaxpr
            for var in eqn.outvars:
                self.facts.pop(var, None)
        self.body(jaxpr, (), child, times=times, outer=where)
        return [(self.dims(child, v), self.fact(v)) for v in jaxpr.outvars]

    def join(self, one: Sequence[Dim], other: Sequence[Dim]) -> None:
        """Make the dims of two arrays of one shape the same."""
        for a, b in zip(one, other, strict=True):
            self.classes.unify(a, b)

    def plain(self, eqn: Any, scope: Scope, times: int, where: Any) -> None:
        """Relate the dims of a first-order equation, which nothing asks for if it runs 0 times."""
        name = eqn.primitive.name
        if not is_known(name):
            self.unknown.setdefault(name, where)
        fac = factors(eqn)
        node = [() if size == 1 else (self.classes.new(size),) for size in fac.sizes]

        def written(dims):
            return [tuple(n for f in dim for n in node[f]) for dim in dims]

        reads = []
        for atom, dims in zip(eqn.invars, fac.operands, strict=True):
            mine = written(dims)
            if len(mine) == len(atom.aval.shape):
                self.join(mine, self.dims(scope, atom))
            fact = self.fact(atom)
            reads.append(Operand(tuple(mine), _bytes(atom.aval), *fact.kind, fact.path))
        for var, dims in zip(eqn.outvars, fac.results, strict=True):
            scope.dims[var] = written(dims)
        # What is not computed, or has no element, needs nothing and costs nothing.
        if times and any(0 not in var.aval.shape for var in eqn.outvars):
            self._note(eqn, fac, node, reads, scope, times, where)
        self._bound(eqn)

    def _note(self, eqn, fac, node, reads, scope, times, where) -> None:
        """Append to `uses` what an equation does with the classes of its factors."""
        name = eqn.primitive.name
        first = eqn.outvars[0]
        made = Operand(tuple(scope.dims[first]), _bytes(first.aval), False, False)

        def use(kind, found, flops=0):
            dims = tuple(node[f] for f in found if node[f])
            if dims or kind == "contract":
                key = tuple(a if not isinstance(a, Literal) else None for a in eqn.invars)
                self.uses.append(
                    Use(kind, dims, tuple(reads), made, flops, times, name, where, key)
                )

        reduced = [f for f, _ in fac.reduced]
        rule = rule_of(eqn)
        kind = rule.kind
        if kind == "product":
            flops = rule.flops(eqn) if rule.flops else 0
            use("contract", reduced, flops)
        elif reduced:
            use("reduce", reduced)
        read = {f for dims in fac.operands for dim in dims for f in dim}
        whole = [f for f in sorted(fac.whole) if f in read]
        if whole and kind == "lookup":
            indexed = {f for dim in fac.operands[0] for f in dim}
            ids = self.fact(eqn.invars[1]).ids
            use("lookup" if ids else "place", [f for f in whole if f in indexed])
        elif whole:
            use("place" if kind == "place" else "whole", whole)
        if kind == "view" and eqn.invars:
            made_new = [f for dim in fac.results[0] for f in dim if f not in read]
            use("stretch", [f for f in made_new if f not in fac.whole])
        if rule.is_equality and any(self.fact(atom).ids for atom in eqn.invars):
            for atom, dims in zip(eqn.invars, fac.operands, strict=True):
                count = self.fact(atom).count
                use("match", [f for dim in dims for f in dim if fac.sizes[f] == count])

    def _bound(self, eqn) -> None:
        """Where integers of the batch index or are compared with all ids: how many ids there are.

        A negative index counts from the end, so JAX adds the size where it is below zero; such
        arithmetic keeps what field the integers are from.
        """
        if rule_of(eqn).kind in ("lookup", "scatter"):
            fields = self.fact(eqn.invars[1]).fields
            numbers = eqn.params["dimension_numbers"]
            indexed = getattr(numbers, "start_index_map", None)
            if indexed is None:
                indexed = numbers.scatter_dims_to_operand_dims
            if indexed:
                self._below(fields, min(eqn.invars[0].aval.shape[d] for d in indexed))
        elif rule_of(eqn).is_equality:
            sides = [self.fact(atom) for atom in eqn.invars]
            for one, other in (sides, sides[::-1]):
                if other.count is not None:
                    self._below(one.fields, other.count)

    def _below(self, fields: frozenset[str], size: int) -> None:
        """Note that integers in these fields of the batch pick one of `size`."""
        for field in fields:
            least, most = self.below.get(field, (size, size))
            self.below[field] = min(size, least), max(size, most)


def _floats(facts: Sequence[Facts]) -> frozenset[str]:
    """The fields whose floats are in any of these arrays, as they came."""
    return frozenset().union(*(fact.floats for fact in facts))


def _fields(facts: Sequence[Facts]) -> frozenset[str]:
    """The fields whose integers are in any of these arrays, as they came."""
    return frozenset().union(*(fact.fields for fact in facts))


def _is_float(aval) -> bool:
    """Whether it may be a mask or a scale of weights: random streams and counters are not."""
    return jax.numpy.issubdtype(aval.dtype, np.inexact)


def _bytes(aval) -> int:
    """Bytes of a variable's array; eight an element for a random key."""
    dtype = aval.dtype
    size = 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else np.dtype(dtype).itemsize
    return prod(aval.shape) * size
