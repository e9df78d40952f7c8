"""Factors: how the dims of one equation's operands relate to the dims of its results.

Read like an einsum: every dim of every operand and result is written as factors, numbered within
the equation, and two dims that share a factor are the same dim. Knows no mesh and interprets
nothing, so that the same table names dims and places collectives. A primitive outside the table
gets a fresh factor for every dim, all of them whole: never wrong, at worst wasteful.
"""

from __future__ import annotations

from jaxpar.jaxprs.rules import contract, elementwise, index, reshape
from jaxpar.jaxprs.rules.record import Dims, Factors, Ids

__all__ = ["Dims", "Factors", "factors", "is_known"]

_RULES = {**elementwise.RULES, **reshape.RULES, **contract.RULES, **index.RULES}


def is_known(primitive: str) -> bool:
    """Say whether the table has a rule for this primitive."""
    return primitive in _RULES


def factors(eqn) -> Factors:
    """Relate the dims of `eqn`'s operands to the dims of its results.

    >>> import jax, jax.numpy as jnp
    >>> eqn = jax.make_jaxpr(lambda x, w: x @ w)(jnp.ones((2, 3)), jnp.ones((3, 5))).eqns[0]
    >>> f = factors(eqn)
    >>> f.operands, f.results, f.reduced
    ((((0,), (1,)), ((1,), (2,))), (((0,), (2,)),), ((1, 'sum'),))
    """
    ids = Ids()
    ins = [tuple(var.aval.shape) for var in eqn.invars]
    outs = [tuple(var.aval.shape) for var in eqn.outvars]
    rule = _RULES.get(eqn.primitive.name, _unknown)
    operands, results = rule(ids, ins, outs, eqn.params)
    return ids.seal(operands, results)


def _unknown(ids: Ids, ins, outs, params):
    return [ids.whole_dims(s) for s in ins], [ids.whole_dims(s) for s in outs]
