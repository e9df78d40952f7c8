"""What an array was made from: weights, the batch, and whether its integers are ids.

Ids are the whole numbers that a batch brings or that are drawn: tokens, users, labels. They stay
ids when they are shifted, masked, sorted, picked by others, carried round a loop or given an
offset; numbers that a loss counts by itself (positions, buckets, an argmax) are none. A batch may
bring them as floats, which are made integers as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.jaxprs.interpreter import held_by
from jaxpar.jaxprs.rules import is_cast, rule_of


@dataclass(frozen=True)
class Facts:
    """What an array was made from.

    Attributes:
        weight: something learned went into it.
        other: something of the batch, or something drawn, went into it.
        ids: whether its integers are ids, or others computed from ids.
        fields: the fields of the batch whose integers it holds as they came.
        floats: the fields of the batch whose floats it holds as they came, but for rounding.
        bits: whether it is 0 or 1 everywhere.
        count: how many numbers it counts, if it is 0, 1, 2, ... along one of its dims.
        path: of the weight that it is, cast perhaps, but neither cut nor reshaped; or None.
    """

    weight: bool = False
    other: bool = False
    ids: bool = False
    fields: frozenset[str] = frozenset()
    floats: frozenset[str] = frozenset()
    bits: bool = False
    count: int | None = None
    path: str | None = None

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight, perhaps reshaped, cast or masked."""
        return self.weight and not self.other

    @property
    def kind(self) -> tuple[bool, bool]:
        """(is a weight, anything learned went in)."""
        return self.is_weight, self.weight


def either(facts: Sequence[Facts]) -> Facts:
    """The facts of an array that is any of these, such as what the branches of a `cond` make."""
    first, *others = facts
    return Facts(
        weight=any(f.weight for f in facts),
        other=any(f.other for f in facts),
        ids=any(f.ids for f in facts),
        fields=frozenset().union(*(f.fields for f in facts)),
        floats=frozenset().union(*(f.floats for f in facts)),
        bits=all(f.bits for f in facts),
        count=first.count if all(f.count == first.count for f in others) else None,
        path=first.path if all(f.path == first.path for f in others) else None,
    )


def made_by(eqn: Any, facts: Sequence[Facts]) -> list[Facts]:
    """The facts of each result, from those of the operands; jaxprs in the equation are not read."""
    rule = rule_of(eqn)
    if eqn.primitive.name == "iota":
        return [Facts(count=eqn.params["shape"][eqn.params["dimension"]])]
    if is_cast(eqn):
        made = replace(facts[0], bits=facts[0].bits or _is_boolean(eqn.invars[0]))
        if made.floats and is_integer(eqn.outvars[0].aval):
            return [replace(made, ids=True, fields=made.floats, floats=frozenset())]
        return [made]
    mixed = Facts(any(f.weight for f in facts), any(f.other for f in facts))
    if rule.kind == "random":
        return [replace(mixed, ids=is_integer(v.aval)) for v in eqn.outvars]
    if rule.ids == "sides":
        pairs = zip(eqn.outvars, facts, strict=False)
        return [
            replace(mixed, ids=f.ids, fields=f.fields, floats=f.floats, bits=f.bits)
            for _, f in pairs
        ]
    held = facts[slice(*rule.holds)]
    if rule.ids == "kept" or eqn.primitive.name in _ROUNDED:
        mixed = replace(mixed, floats=frozenset().union(*(f.floats for f in held)))
    if not rule.ids:
        return [mixed] * len(eqn.outvars)
    ids = [f for f in held if f.ids]
    found = replace(mixed, ids=bool(ids))
    others = [f for f in held if not f.ids]
    if rule.ids == "kept" or (eqn.primitive.name == "mul" and all(f.bits for f in others)):
        counts = {f.count for f in held if f.count}
        found = replace(
            found,
            fields=frozenset().union(*(f.fields for f in ids)),
            bits=all(f.bits for f in held),
            count=counts.pop() if len(counts) == 1 and not ids else None,
        )
    return [found] * len(eqn.outvars)


_ROUNDED = frozenset("round floor ceil".split())
"""What is done to floats that hold integers before they are made integers."""


def in_every_turn(held: Any, before, carry, after=()) -> list[Facts]:
    """The facts of a loop's carry that hold in every turn.

    Args:
        held: the jaxpr of a turn, whose first results are the carry of the next.
        before, carry, after: the facts of what it is given, those of the carry for the first turn.
    """
    carry = list(carry)
    while True:
        made = through(held, [*before, *carry, *after])
        grown = [either(pair) for pair in zip(carry, made, strict=False)]
        if grown == carry:
            return carry
        carry = grown


def through(held: Any, facts: Sequence[Facts]) -> list[Facts]:
    """The facts of a jaxpr's results, given those of its arguments."""
    jaxpr, _ = open_jaxpr(held)
    known = dict(zip(jaxpr.invars, facts, strict=True))

    def of(atom) -> Facts:
        return Facts() if isinstance(atom, Literal) else known.get(atom, Facts())

    for eqn in jaxpr.eqns:
        made = _results(eqn, [of(atom) for atom in eqn.invars])
        known |= dict(zip(eqn.outvars, made, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _results(eqn: Any, facts: list[Facts]) -> list[Facts]:
    """The facts of each result of an equation, whatever it holds."""
    kind, p = rule_of(eqn).kind, eqn.params
    if kind in ("call", "remat", "custom"):
        return through(held_by(eqn), facts)
    if kind == "shards":
        return through(p["jaxpr"], facts)
    if kind == "cond":
        made = [through(branch, facts[1:]) for branch in p["branches"]]
        return [either(pair) for pair in zip(*made, strict=True)]
    if kind == "scan":
        first, end = scan_parts(p)
        carry = in_every_turn(p["jaxpr"], facts[:first], facts[first:end], facts[end:])
        made = through(p["jaxpr"], [*facts[:first], *carry, *facts[end:]])
        return [*carry, *made[end - first :]]
    if kind == "while":
        first, end = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        return in_every_turn(p["body_jaxpr"], facts[first:end], facts[end:])
    if kind == "layers":
        end = p["consts"] + p["stacked"]
        return in_every_turn(p["body"], facts[:end], facts[end:])
    return made_by(eqn, facts)


def is_integer(aval: Any) -> bool:
    """Whether an abstract array holds integers."""
    return not jnp.issubdtype(aval.dtype, jax.dtypes.extended) and jnp.issubdtype(
        aval.dtype, jnp.integer
    )


def _is_boolean(atom: Any) -> bool:
    """Whether an equation's operand holds booleans."""
    return atom.aval.dtype == bool
