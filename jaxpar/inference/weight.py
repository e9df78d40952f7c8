"""What a person's mean is a mean over: the last division by something made of the batch alone.

`(each * mask).sum() / mask.sum()` is a mean over what the mask keeps. Put together from parts of a
batch it is the sum of the parts' numerators over the sum of their denominators, so the denominator
is the weight of a part. A loss in whose trace there is no such division is taken for a mean over
rows; `jaxpar.inference.parts` tries whether it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
from jax.extend.core import Literal

from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.interpreter import Interpreter, as_it_is, held_by
from jaxpar.jaxprs.record import FIELD
from jaxpar.jaxprs.rules import rule_of
from jaxpar.models.record import Guard, Mean

_PASSED = frozenset(
    "convert_element_type copy neg reshape squeeze broadcast_in_dim reduce_precision".split()
)
"""Operations on one number that leave it a mean over the same."""


_CASE_OF_ZERO = {"gt": 0, "lt": 0, "ne": 0, "eq": 1}
"""A comparison of a weight with zero -> which of two cases a zero chooses: w > 0, 0 < w, ..."""


def weighed(traced: TracedLoss, parameters: Sequence[str]) -> TracedLoss:
    """A plain loss, and each of its metrics, with the weight that its trace shows.

    Args:
        traced: its means weigh as many rows as the batch has.
        parameters: paths of what is learned.
    """
    if not any(_divisors(traced, parameters, nested=True)):
        return traced
    # Divisions may stand in functions that are called, such as jnp.mean's own: calls are inlined.
    closed = traced.closed

    def inlined(*args):
        return Interpreter().run(closed.jaxpr, closed.consts, args)

    flat = replace(traced, closed=jax.make_jaxpr(inlined)(*closed.in_avals))
    found = _divisors(flat, parameters, nested=False)
    inner, count = flat.closed.jaxpr, traced.tree.num_leaves
    extra = [variable for one in found if one for variable in (one.value, one.weight)]
    jaxpr = inner.replace(outvars=[*inner.outvars, *extra])
    divided = _Divides({one.by for one in found if one and one.guard == Guard()})

    def function(*args):
        results = divided.run(jaxpr, flat.closed.consts, args)
        more = iter(results[len(inner.outvars) :])
        for k, one in enumerate(found):
            if one:
                value, weight = next(more), next(more)
                weight = weight.astype(value.dtype)
                results[2 * k : 2 * k + 2] = [value * one.guard.of(weight), weight]
        return results[: len(inner.outvars)]

    assert count == 2 * len(found), traced.tree
    guards = iter(one.guard if one else Guard() for one in found)
    guarded = jax.tree.map(
        lambda mean: replace(mean, guard=next(guards)),
        jax.tree.unflatten(traced.tree, range(count)),
        is_leaf=lambda value: isinstance(value, Mean),
    )
    closed = jax.make_jaxpr(function)(*closed.in_avals)
    return replace(traced, closed=closed, tree=jax.tree.structure(guarded))


@dataclass(frozen=True)
class _Divided:
    """A mean's value, and what it was last divided by: a weight, kept from being zero; and where.

    The equation that divides is known by its id.
    """

    value: Any
    weight: Any
    guard: Guard
    by: int


class _Divides(Interpreter):
    """Evaluates a jaxpr with some divisions of nothing by no weight made divisions by one.

    A part of a batch may have no weight where the whole has: it then adds nothing, and no NaN.
    """

    def __init__(self, unguarded: Collection[int]):
        """Given the ids of the equations that divide."""
        super().__init__()
        self.unguarded = unguarded

    def equation(self, eqn, operands, here):
        """An equation's results, as it is but for its divisor."""
        del here
        if id(eqn) in self.unguarded:
            above, below = operands
            nothing = (above == 0) & (below == 0)
            operands = [above, jax.numpy.where(nothing, jax.numpy.ones_like(below), below)]
        return as_it_is(eqn, operands)


def _divisors(
    traced: TracedLoss, parameters: Sequence[str], *, nested: bool
) -> list[_Divided | None]:
    """What was found of each mean; None if it was last divided by nothing of the batch alone.

    With `nested` what is found may be a variable of a jaxpr that is called.
    """
    jaxpr = traced.closed.jaxpr
    learned = set(parameters)
    flags = {
        variable: _Made(path in learned, path.startswith(FIELD))
        for variable, path in zip(jaxpr.invars, traced.arguments, strict=True)
    }
    search = _Search(jaxpr, flags, nested)
    totals = jaxpr.outvars[: traced.tree.num_leaves : 2]
    return [search.of_mean(total) for total in totals]


@dataclass(frozen=True)
class _Made:
    """What a value is made of: of parameters, of the batch."""

    of_parameters: bool = False
    of_batch: bool = False

    def __or__(self, other: _Made) -> _Made:
        return _Made(self.of_parameters or other.of_parameters, self.of_batch or other.of_batch)


class _Search:
    """Looks back from results of a jaxpr for the division that made them."""

    def __init__(
        self,
        jaxpr: Any,
        flags: Mapping[Any, _Made],
        nested: bool,
        given: Mapping[Any, Callable[[], Any]] = MappingProxyType({}),
    ):
        """In a jaxpr, given what each argument is made of, and what divisor an argument had."""
        self.nested, self.flags, self.given = nested, dict(flags), given
        self.makers: dict[Any, tuple[Any, int]] = {}
        self.within: dict[int, _Search] = {}
        for eqn in jaxpr.eqns:
            made = [self.made(atom) for atom in eqn.invars]
            results = [_joined(made)] * len(eqn.outvars)
            if rule_of(eqn).kind == "call":
                inner, _ = open_jaxpr(held_by(eqn))
                pairs = list(zip(inner.invars, eqn.invars, strict=True))
                given = {v: partial(self.divisor, atom) for v, atom in pairs}
                below = _Search(inner, dict(zip(inner.invars, made, strict=True)), nested, given)
                results = [below.made(atom) for atom in inner.outvars]
                self.within[id(eqn)] = below
            for index, (variable, flag) in enumerate(zip(eqn.outvars, results, strict=True)):
                self.flags[variable], self.makers[variable] = flag, (eqn, index)

    def made(self, atom: Any) -> _Made:
        """What an atom is made of; constants of neither."""
        return _Made() if isinstance(atom, Literal) else self.flags.get(atom, _Made())

    def of_mean(self, total: Any) -> _Divided | None:
        """What made a mean whose total is its value times the number of rows."""
        eqn, _ = self._maker(total)
        if eqn is None or eqn.primitive.name != "mul" or not isinstance(eqn.invars[1], Literal):
            return None
        value = eqn.invars[0]
        divisor = self.divisor(value)
        return None if divisor is None else _Divided(value, *divisor)

    def divisor(self, atom: Any) -> tuple[Any, Guard, int] | None:
        """What made this number by division, if that is of the batch alone: as in `_Divided`."""
        eqn, index = self._maker(atom)
        if eqn is None:
            known = None if isinstance(atom, Literal) else self.given.get(atom)
            return known() if known else None
        name, operands = eqn.primitive.name, eqn.invars
        if id(eqn) in self.within:
            inner, _ = open_jaxpr(held_by(eqn))
            below = self.within[id(eqn)].divisor(inner.outvars[index])
            return below if self.nested else None
        if name == "div" and self._is_weight(operands[1]):
            return (*self._count(operands[1]), id(eqn))
        if name in _PASSED:
            return self.divisor(operands[0])
        if name == "mul":
            for one in filter(self._is_weight, operands):
                maker, _ = self._maker(one)  # a product with a reciprocal is a division
                if maker is not None and maker.primitive.name == "div":
                    return (*self._count(maker.invars[1]), id(maker))
        if name in ("mul", "div") and not self.made(operands[1]).of_batch:
            return self.divisor(operands[0])
        if name == "mul" and not self.made(operands[0]).of_batch:
            return self.divisor(operands[1])
        if name in ("add", "sub"):
            # What is of no row, such as a penalty on weights, is the same in every part.
            return next(filter(None, map(self.divisor, operands)), None)
        if name == "select_n" and not self.made(operands[0]).of_parameters:
            return next(filter(None, map(self.divisor, operands[1:])), None)
        return None

    def _is_weight(self, atom: Any) -> bool:
        """Whether a divisor is one number made of the batch and of nothing learned."""
        made = self.made(atom)
        return made.of_batch and not made.of_parameters and atom.aval.shape == ()

    def _count(self, atom: Any) -> tuple[Any, Guard]:
        """The weight that a divisor is made of, and what keeps it from being zero."""
        eqn, _ = self._maker(atom)
        if eqn is None:
            return atom, Guard()
        name, operands = eqn.primitive.name, eqn.invars
        if name == "convert_element_type" and self._is_weight(operands[0]):
            return self._count(operands[0])
        if name in ("max", "add"):
            for one, other in (operands, operands[::-1]):
                if isinstance(other, Literal) and self._is_weight(one):
                    number = float(other.val)
                    guard = Guard(least=number) if name == "max" else Guard(added=number)
                    return one, guard
        if name == "select_n" and len(operands) == 3:
            for one, other, case in ((*operands[1:], 1), (*operands[:0:-1], 0)):
                if isinstance(other, Literal) and self._is_weight(one):
                    if self._case_of_zero(operands[0], one) == case:
                        return one, Guard(instead=float(other.val))
        return atom, Guard()

    def _case_of_zero(self, choice: Any, weight: Any) -> int | None:
        """Which of two cases is chosen where this weight is zero; None if the choice is another."""
        eqn, _ = self._maker(choice)
        if eqn is None or eqn.primitive.name not in _CASE_OF_ZERO:
            return None
        name, (left, right) = eqn.primitive.name, eqn.invars
        weight_first = _is_zero(right) and self._are_same(left, weight)
        zero_first = _is_zero(left) and self._are_same(right, weight)
        is_about = {"gt": weight_first, "lt": zero_first}.get(name, weight_first or zero_first)
        return _CASE_OF_ZERO[name] if is_about else None

    def _are_same(self, one: Any, other: Any) -> bool:
        """Whether two atoms are made in the same way, be it once or twice: a sum written again."""
        if one is other:
            return True
        if isinstance(one, Literal) or isinstance(other, Literal):
            literals = isinstance(one, Literal) and isinstance(other, Literal)
            return literals and bool(one.val == other.val)
        (a, index), (b, place) = self._maker(one), self._maker(other)
        if a is None or b is None or a.primitive is not b.primitive or index != place:
            return False
        return str(a.params) == str(b.params) and all(map(self._are_same, a.invars, b.invars))

    def _maker(self, atom: Any) -> tuple[Any, int]:
        """The equation that made an atom, and which of its results it is; None for an argument."""
        return (None, 0) if isinstance(atom, Literal) else self.makers.get(atom, (None, 0))


def _is_zero(atom: Any) -> bool:
    """Whether an atom is the number zero."""
    return isinstance(atom, Literal) and float(atom.val) == 0


def _joined(made: Sequence[_Made]) -> _Made:
    """What is made of all of these."""
    joined = _Made()
    for one in made:
        joined = joined | one
    return joined
