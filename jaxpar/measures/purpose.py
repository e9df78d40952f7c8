"""Purpose: what a collective moves, a weight or an activation, as its name in the program tells.

A step puts a scope `weight(path)` around each gather of a weight, and differentiation leaves `jvp`
and `transpose` in the names of all that belongs to the loss.
"""

import re

from jaxpar.core.scopes import WEIGHT, weight_in
from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.parts import combined_names
from jaxpar.strategies.record import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    GATHER_ACTIVATIONS,
    GATHER_WEIGHTS,
)

WEIGHTS, ACTIVATIONS, OPTIMIZER, UNKNOWN = "weights", "activations", "optimizer", ""

_LOSS = re.compile(r"\b(?:jvp|transpose)\(")
"""What is in the name of an operation of the loss or of its gradient."""
_ON_SHARDS = re.compile(r"\bshard_map\b")
"""What is in the name of an operation of a stage or a replica, differentiated or not."""
_RESHARDED = re.compile(r"/(?:reshard|sharding_constraint)$")
"""An operation that only changes a sharding: what is resharded is not known by its name."""


def weight_of(one: Collective) -> str | None:
    """The path of the weight that a collective gathers; None where it gathers none."""
    return weight_in(one.op_name)


def purpose_of(one: Collective) -> str:
    """What a collective moves: WEIGHTS, ACTIVATIONS, what the OPTIMIZER computes with, or UNKNOWN.

    XLA joins collectives and their names with them, `a:b` or `f/(a:b)`; one that has a part of
    another kind is of that kind. Of one that lost its name nothing is known. Only gathers are of
    weights or of activations: what is summed over devices is a gradient as often as not.
    """
    names = combined_names(one.op_name)
    if one.kind == ALL_TO_ALL and all(WEIGHT.search(name) for name in names):
        return WEIGHTS  # rows of a table, which travel instead of the table
    if one.kind != ALL_GATHER:
        return OPTIMIZER if _is_optimizers(one) else UNKNOWN
    if all(WEIGHT.search(name) for name in names):
        return WEIGHTS
    if one.borrowed or not one.op_name:
        return UNKNOWN
    if _is_optimizers(one):
        return OPTIMIZER
    others = [name for name in names if not WEIGHT.search(name)]
    if not _LOSS.search(one.op_name) and any(map(_RESHARDED.search, others)):
        return UNKNOWN  # such as new weights that go back to where they are stored
    if all(name.endswith("/reshard") for name in others):
        return UNKNOWN  # explicit mode moves weights and activations by the same operation
    return ACTIVATIONS


def _is_optimizers(one: Collective) -> bool:
    """Whether an operation of the optimizer asks for a collective, and not only a sharding does."""
    name = one.op_name
    if one.borrowed or not name or _LOSS.search(name) or _ON_SHARDS.search(name):
        return False
    return one.kind != ALL_REDUCE and not any(map(_RESHARDED.search, combined_names(name)))


def kinds_of(kind: str, purpose: str) -> frozenset[str]:
    """The kinds, as strategies name them, that a collective may be of.

    None for an optimizer's, nor for an exchange of a table's rows, which a step asks for by itself.

    >>> sorted(kinds_of("all-gather", "weights")), sorted(kinds_of("all-reduce", ""))
    (['all-gather of weights'], ['all-reduce'])
    """
    if purpose == OPTIMIZER or (kind, purpose) == (ALL_TO_ALL, WEIGHTS):
        return frozenset()
    if kind != ALL_GATHER:
        return frozenset({kind})
    both = {WEIGHTS: GATHER_WEIGHTS, ACTIVATIONS: GATHER_ACTIVATIONS}
    return frozenset({both[purpose]} if purpose in both else both.values())
