"""Rules: what each primitive is, and how the dims of its operands relate to those of its results.

Read like an einsum: every dim of every operand and result is written as factors, numbered within
the equation, and two dims that share a factor are the same dim. Knows no mesh and interprets
nothing, so that the same table names dims, types them and places collectives. A primitive outside
the table gets a fresh factor for every dim, all of them whole: never wrong, at worst wasteful.
"""

from __future__ import annotations

from jaxpar.jaxprs.rules import contract, control, elementwise, index, reshape
from jaxpar.jaxprs.rules.record import Dims, FactorCounter, Factors, Rule

__all__ = [
    "TABLE",
    "Dims",
    "Factors",
    "Rule",
    "factors",
    "is_cast",
    "is_known",
    "rule_named",
    "rule_of",
]

_TABLES = (
    elementwise.RULES,
    reshape.RULES,
    contract.RULES,
    index.RULES,
    control.RULES,
)
TABLE = {name: rule for table in _TABLES for name, rule in table.items()}
"""Primitive -> its rule."""
assert len(TABLE) == sum(map(len, _TABLES)), "a primitive stands in two tables"

_UNKNOWN = Rule("other")


def is_known(primitive: str) -> bool:
    """Whether there is a rule for this primitive."""
    return primitive in TABLE


def rule_named(primitive: str) -> Rule:
    """The rule of a primitive by its name; of an unknown one, a rule that relates nothing."""
    return TABLE.get(primitive, _UNKNOWN)


def rule_of(eqn) -> Rule:
    """The rule of an equation's primitive."""
    return rule_named(eqn.primitive.name)


def is_cast(eqn) -> bool:
    """Whether an equation makes its one operand again, in another dtype perhaps."""
    return rule_of(eqn).kind == "cast"


def factors(eqn) -> Factors:
    """Relate the dims of `eqn`'s operands to the dims of its results.

    >>> import jax, jax.numpy as jnp
    >>> eqn = jax.make_jaxpr(lambda x, w: x @ w)(jnp.ones((2, 3)), jnp.ones((3, 5))).eqns[0]
    >>> f = factors(eqn)
    >>> f.operands, f.results, f.reduced
    ((((0,), (1,)), ((1,), (2,))), (((0,), (2,)),), ((1, 'sum'),))
    """
    counter = FactorCounter()
    ins = [tuple(var.aval.shape) for var in eqn.invars]
    outs = [tuple(var.aval.shape) for var in eqn.outvars]
    relate = rule_of(eqn).relate or _unrelated
    operands, results = relate(counter, ins, outs, eqn.params)
    return counter.seal(operands, results)


def _unrelated(counter: FactorCounter, ins, outs, params):
    return [counter.whole_dims(s) for s in ins], [counter.whole_dims(s) for s in outs]
