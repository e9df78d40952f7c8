"""Our rule of every primitive is Shardy's, or the difference stands in a table with its reason.

What agreement means, for each factor above 1 of every dim (see `shardy/fates.py`): what we pass
from operands to results, Shardy shares between the same dims and marks as nothing; what we reduce,
it reduces in the same dims; what we make new, no other array has; and the other way round. A dim
that we call whole, it marks as `need_replication` or `permutation`, or relates to nothing; and
several whole dims that are one dim to us are one to Shardy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import jax
import pytest
from shardy.cases import CASES
from shardy.cases.arguments import arguments_of
from shardy.differences import DELIBERATE
from shardy.fates import (
    ALONE,
    PASSES,
    REDUCED,
    WHOLE,
    Fate,
    Place,
    Silent,
    our_fates,
    parse,
    shardys_fates,
)

from jaxpar.core.jax_compat import with_shardy_rules
from jaxpar.jaxprs import rules
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import factors, rule_of

ABSENT = "absent"
"""The fate of what the other record writes in other factors."""

NEWER = {"log2": (0, 11), "one_minus_square": (0, 11), "polynomial": (0, 12)}
"""Primitives that came with a later JAX than the oldest supported: since when."""

WITHOUT_CASE = {
    "reshard": "it is types that it changes, and it is lowered for a mesh only",
    "fused_attention": "it is lowered to a call of a library, of which Shardy knows no dims",
    "fused_attention_gradient": "likewise",
}

SILENT = {
    "erf": "an operation of MHLO by the time that CHLO is gone, and Shardy knows none of those",
    "top_k": "likewise",
}
"""Primitives for which Shardy has no rule, and why."""


@dataclass(frozen=True)
class Compared:
    """One equation, and the fates of its factors by both; Shardy's None where it is silent."""

    eqn: Any
    ours: dict[Place, Fate]
    shardys: dict[Place, Fate] | None


@cache
def cases() -> dict[str, tuple[Compared, ...]]:
    """Every case's equations that have a rule, each compared once."""
    try:
        with_shardy_rules(jax.jit(lambda x: x).lower(0.0))
    except NotImplementedError as missing:
        pytest.skip(str(missing))
    seen, found = set(), {}
    for name, case in CASES.items():
        jaxpr = jax.make_jaxpr(case[0])(*arguments_of(case)).jaxpr
        found[name] = []
        for eqn, _ in equations(jaxpr):
            avals = [str(v.aval) for v in (*eqn.invars, *eqn.outvars)]
            key = (eqn.primitive.name, *avals, str(eqn.params))
            if rule_of(eqn).relate is None or key in seen or eqn.primitive.name in WITHOUT_CASE:
                continue
            seen.add(key)
            found[name].append(Compared(eqn, our_fates(eqn), _shardys_or_none(eqn)))
    return {name: tuple(compared) for name, compared in found.items()}


def _shardys_or_none(eqn):
    try:
        return shardys_fates(eqn)
    except Silent:
        return None


def differences(one: Compared) -> list[tuple[Place, str]]:
    """Where an equation's two records disagree, and how: "ours/Shardy's"."""
    assert one.shardys is not None
    found = []
    nothing = Fate(ABSENT, frozenset())
    for place in sorted({*one.ours, *one.shardys}):
        ours, shardys = one.ours.get(place, nothing), one.shardys.get(place, nothing)
        if ours.kind == WHOLE:
            same = shardys.kind in (WHOLE, ALONE) and ours.places <= shardys.places
        else:
            same = ours == shardys
        if not same:
            found.append((place, f"{ours.kind}/{shardys.kind}"))
    return found


def unexplained(one: Compared) -> list[str]:
    """The differences of an equation that nobody meant, as sentences."""
    name = one.eqn.primitive.name
    return [
        f"{name}, {place}: ours/Shardy's is {fates}"
        for place, fates in differences(one)
        if not any(known.covers(one.eqn, place, fates) for known in DELIBERATE)
    ]


def spoken() -> list[Compared]:
    """All equations for which Shardy has a rule."""
    return [one for compared in cases().values() for one in compared if one.shardys is not None]


def test_our_rules_are_shardys():
    wrong = {
        name: [
            sentence for one in compared if one.shardys is not None for sentence in unexplained(one)
        ]
        for name, compared in cases().items()
    }
    assert {name: sentences for name, sentences in wrong.items() if sentences} == {}
    assert len(spoken()) > 400


def test_every_rule_has_a_case():
    met = {one.eqn.primitive.name for compared in cases().values() for one in compared}
    version = jax.__version_info__
    for name, rule in rules.TABLE.items():
        if rule.relate is None:
            continue
        told = name in WITHOUT_CASE or version < NEWER.get(name, (0,))
        assert (name in met) != told, (
            f"add a function that uses the primitive '{name}' to tests/shardy/cases"
            if not told
            else f"'{name}' has a case: take it out of WITHOUT_CASE or NEWER"
        )


def test_shardy_is_silent_only_where_it_is_said():
    silent = {
        one.eqn.primitive.name
        for compared in cases().values()
        for one in compared
        if one.shardys is None
    }
    assert silent == set(SILENT)


def test_every_deliberate_difference_is_still_one():
    met = {
        (known, name, fates)
        for one in spoken()
        for name in [one.eqn.primitive.name]
        for place, fates in differences(one)
        for known in DELIBERATE
        if known.covers(one.eqn, place, fates)
    }
    for known in DELIBERATE:
        if known.until is not None and jax.__version_info__ >= known.until:
            assert not any(known is one for one, _, _ in met), f"until is too early: {known.reason}"
            continue
        for name in known.primitives.split():
            assert any(known is one and name == n for one, n, _ in met), f"{name}: {known.reason}"
        for fates in known.fates.split():
            assert any(known is one and fates == f for one, _, f in met), f"{fates}: {known.reason}"


def test_factor_sizes_multiply_out_to_every_dim():
    for compared in cases().values():
        for eqn in (one.eqn for one in compared):
            rule = factors(eqn)
            atoms = (*eqn.invars, *eqn.outvars)
            for atom, dims in zip(atoms, (*rule.operands, *rule.results), strict=True):
                sizes = tuple(prod(rule.sizes[f] for f in fs) for fs in dims)
                assert sizes == tuple(atom.aval.shape), eqn


ALLOWED = {
    "elementwise": {PASSES, ALONE},
    "cast": {PASSES, ALONE},
    "annotation": {PASSES, ALONE},
    "view": {PASSES, ALONE, WHOLE},
    "lookup": {PASSES, WHOLE},
    "scatter": {PASSES, WHOLE},
    "place": {PASSES, WHOLE},
    "reduce": {PASSES, REDUCED, WHOLE},
}
"""What may become of a factor in a primitive of a kind."""


def test_a_kind_is_what_its_factors_say():
    for compared in cases().values():
        for one in compared:
            name, kind = one.eqn.primitive.name, rule_of(one.eqn).kind
            fates = {fate.kind for fate in one.ours.values()}
            assert fates <= ALLOWED.get(kind, fates), f"{name} is no {kind}: {fates}"
            if kind == "reduce":
                gone = fates & {REDUCED, WHOLE}
                assert gone or not one.ours, f"{name} is a reduction that reduces nothing"


# --- broken copies of rules, which the law must catch --------------------------------------------


def _as_passing(ids, ins, outs, params):
    dims = ids.dims(outs[0])
    return [dims if len(shape) == len(dims) else [] for shape in ins], [dims for _ in outs]


def _forgetting(relate, *, reduced=False, whole=False):
    def rule(ids, *about):
        found = relate(ids, *about)
        if reduced:
            ids.reduced.clear()
        if whole:
            ids.whole.clear()
        return found

    return rule


def _turned(relate):
    """Dims of the result in the wrong order."""

    def rule(ids, *about):
        operands, results = relate(ids, *about)
        return operands, [list(reversed(dims)) for dims in results]

    return rule


BROKEN = {
    "a product that sums nothing": ("dot_general", lambda r: _forgetting(r, reduced=True)),
    "a product turned round": ("dot_general", _turned),
    "a sort that is elementwise": ("sort", lambda r: _as_passing),
    "a running sum that is elementwise": ("cumsum", lambda r: _as_passing),
    "a decomposition that is elementwise": ("cholesky", lambda r: _as_passing),
    "a lookup by pieces": ("gather", lambda r: _forgetting(r, whole=True)),
    "a concatenation by pieces": ("concatenate", lambda r: _forgetting(r, whole=True)),
    "a reversal by pieces": ("rev", lambda r: _forgetting(r, whole=True)),
    "an image by pieces": ("conv_general_dilated", lambda r: _forgetting(r, whole=True)),
    "a maximum that is nothing": ("reduce_max", lambda r: _forgetting(r, reduced=True)),
    "a primitive related to nothing": ("exp", lambda r: rules._unrelated),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_rule_is_caught(broken, monkeypatch):
    name, breaks = BROKEN[broken]
    mine = [one for one in spoken() if one.eqn.primitive.name == name]
    assert mine and not any(map(unexplained, mine))
    rule = rules.TABLE[name]
    monkeypatch.setitem(rules.TABLE, name, replace(rule, relate=breaks(rule.relate)))
    assert any(unexplained(replace(one, ours=our_fates(one.eqn))) for one in mine)


# --- the parser ----------------------------------------------------------------------------------


def test_a_rule_is_read_as_it_is_printed():
    rule = parse(
        "#sdy.op_sharding_rule<([ij, k], [l, z_1], [])->([i, j], []) "
        "{i=2, j=3, k=4, l=10, z_1=1} reduction={k} need_replication={l, z_1} "
        "permutation={j} blocked_propagation={l}>"
    )
    assert rule.operands == (((0, 1), (2,)), ((3,), (4,)), ())
    assert rule.results == (((0,), (1,)), ())
    assert rule.sizes == (2, 3, 4, 10, 1)
    assert rule.marks == {
        "reduction": {2},
        "need_replication": {3, 4},
        "permutation": {1},
        "blocked_propagation": {3},
    }
    assert parse("#sdy.op_sharding_rule<([], [])->([])>").operands == ((), ())
    with pytest.raises(AssertionError, match="does not know"):
        parse("#sdy.op_sharding_rule<([i])->([i]) {i=2} a new word={i}>")
