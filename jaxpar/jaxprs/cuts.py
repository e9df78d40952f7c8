"""Where a loss cuts what a weight makes: queries, keys and values out of one product.

A cut is asked for by a `split` or a slice, and followed back through the equations that made what
is cut, to the concatenation or the weight where it could have been made at once. A product that
reads a concatenation is a sum of products, and asks for its matrix in as many runs of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any

from jax.extend.core import Literal

from jaxpar.core.jax_compat import scan_parts
from jaxpar.jaxprs.interpreter import held_by
from jaxpar.jaxprs.rules import factors, rule_of

Points = frozenset[int]
"""Where a dim is cut: positions between 0 and its size, both left out."""

MOST = 16
"""Pieces beyond which an array is a table that is read place by place, and not several in one."""


@dataclass
class Cuts:
    """The cuts asked of one jaxpr's variables.

    Attributes:
        of: variable -> dim -> where it is cut.
        inner: index of an equation -> the same for the jaxprs in it.
    """

    of: dict[Any, dict[int, Points]] = field(default_factory=dict)
    inner: dict[int, list[Cuts]] = field(default_factory=dict)

    def ask(self, atom: Any, cuts: Mapping[int, Points]) -> None:
        """Add cuts to a variable's: dim -> where."""
        if isinstance(atom, Literal) or not cuts:
            return
        held = self.of.setdefault(atom, {})
        for dim, points in cuts.items():
            held[dim] = held.get(dim, frozenset()) | points

    def at(self, atom: Any) -> Mapping[int, Points]:
        """Dim of a variable -> the places where it is cut."""
        return {} if isinstance(atom, Literal) else self.of.get(atom, {})


def find_cuts(
    jaxpr: Any,
    results: Mapping[int, Mapping[int, Points]] | None = None,
    *,
    products: bool = False,
) -> Cuts:
    """The cuts of a jaxpr's variables, given those of its results.

    Args:
        jaxpr: open.
        results: index of a result -> dim -> where it is cut by who called.
        products: whether products of concatenations ask for cuts, for weights that may be cut.
    """
    cuts = Cuts()
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars} if products else {}
    for index, asked in (results or {}).items():
        cuts.ask(jaxpr.outvars[index], asked)
    for index, eqn in reversed(list(enumerate(jaxpr.eqns))):
        asked = [cuts.at(v) for v in eqn.outvars]
        kind = rule_of(eqn).kind
        if kind in ("call", "remat"):
            _inside(cuts, eqn, index, held_by(eqn), dict(enumerate(asked)), products)
        elif kind == "scan":
            _loop(cuts, eqn, index, asked, products)
        else:
            if rule_of(eqn).is_piecewise and any(asked):
                _back(cuts, eqn, asked)
            if made := _made_by(eqn):
                cuts.ask(eqn.invars[0], made)
                cuts.ask(eqn.invars[0], _further(eqn, made, asked))
            for atom, points in _summed(eqn, makers):
                cuts.ask(atom, points)
    return cuts


def summed_dims(eqn) -> tuple[int, int] | None:
    """(left dim, right dim) that a `dot_general` contracts, if it contracts one pair; else None."""
    if eqn.primitive.name != "dot_general":
        return None
    (left, right), _ = eqn.params["dimension_numbers"]
    return (left[0], right[0]) if len(left) == 1 else None


def _summed(eqn, makers: Mapping[Any, Any]) -> list[tuple[Any, dict[int, Points]]]:
    """Both operands of a product that reads a concatenation along what it sums, with the cuts."""
    dims = summed_dims(eqn) if makers else None
    for atom, dim in zip(eqn.invars, dims or (), strict=False):
        maker = None if isinstance(atom, Literal) else makers.get(atom)
        if maker is None or maker.primitive.name != "concatenate":
            continue
        if maker.params["dimension"] == dim:
            sizes = [v.aval.shape[dim] for v in maker.invars]
            points = frozenset(accumulate(sizes[:-1])) - {0, sum(sizes)}
            return [(v, {d: points}) for v, d in zip(eqn.invars, dims or (), strict=True)]
    return []


def _further(eqn, made: Mapping[int, Points], asked) -> dict[int, Points]:
    """The cuts of what an equation cuts out, as cuts of what it cuts: its pieces are cut again."""
    p = eqn.params
    if eqn.primitive.name == "slice":
        return {
            dim: frozenset(p["start_indices"][dim] + point for point in points)
            for dim, points in asked[0].items()
            if dim in made
        }
    if eqn.primitive.name != "split":
        return {}
    starts = accumulate(map(int, p["sizes"]), initial=0)
    found: Points = frozenset()
    for start, cut in zip(starts, asked, strict=False):
        found |= {start + point for point in cut.get(p["axis"], ())}
    return {p["axis"]: found} if found else {}


def _made_by(eqn) -> dict[int, Points]:
    """The cuts that an equation itself makes in what it reads."""
    name, p = eqn.primitive.name, eqn.params
    shape: Any = eqn.invars[0].aval.shape if eqn.invars else ()
    if name == "split":
        # A piece of width 0, as of a layer that was configured away, is at an end or between two.
        points = frozenset(accumulate(map(int, p["sizes"][:-1]))) - {0, shape[p["axis"]]}
        return {p["axis"]: points} if points else {}
    if name == "unstack":
        return {p["axis"]: frozenset(range(1, int(shape[p["axis"]])))}
    if name == "slice" and all(s == 1 for s in p["strides"] or ()):
        ends = zip(p["start_indices"], p["limit_indices"], shape, strict=True)
        cut = {d: frozenset({start, end}) - {0, n} for d, (start, end, n) in enumerate(ends)}
        return {d: points for d, points in cut.items() if points}
    return {}


def _back(cuts: Cuts, eqn, asked) -> None:
    """Hand the cuts of what an equation makes on to what it reads."""
    fac = factors(eqn)
    sources = [
        (atom, dim, ids)
        for atom, dims in zip(eqn.invars, fac.operands, strict=True)
        for dim, ids in enumerate(dims)
    ]
    for made, dims in zip(asked, fac.results, strict=True):
        for dim, points in made.items():
            for atom, at, ids in sources:
                moved = carried(points, dims[dim], ids, fac)
                if moved:
                    cuts.ask(atom, {at: moved})


def carried(points: Points, one: tuple[int, ...], other: tuple[int, ...], fac) -> Points:
    """Points of the dim whose factors are `one`, as points of the dim whose factors are `other`.

    Two dims are cut at the same places where they begin with the same factors; a point inside what
    they do not share is left out.
    """
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b or a in fac.whole:
            break
        shared += 1
    if not shared:
        return frozenset()
    within, there = (prod(fac.sizes[f] for f in dim[shared:]) for dim in (one, other))
    return frozenset(p // within * there for p in points if p % within == 0)


def _inside(cuts: Cuts, eqn, index: int, called, asked, products: bool) -> None:
    """Find the cuts in a jaxpr that an equation calls, and ask its operands for them."""
    jaxpr = getattr(called, "jaxpr", called)
    inner = find_cuts(jaxpr, asked, products=products)
    cuts.inner[index] = [inner]
    for atom, var in zip(eqn.invars, jaxpr.invars, strict=True):
        cuts.ask(atom, inner.at(var))


def _loop(cuts: Cuts, eqn, index: int, asked, products: bool) -> None:
    """Into a loop and out of it: what is scanned has a dim more; what is carried stays whole."""
    p = eqn.params
    consts, first = scan_parts(p)
    carries = first - consts
    made = {
        k: {dim - 1: points for dim, points in cut.items() if dim > 0}
        for k, cut in enumerate(asked)
        if k >= carries
    }
    inner = find_cuts(p["jaxpr"].jaxpr, made, products=products)
    cuts.inner[index] = [inner]
    for k, (atom, var) in enumerate(zip(eqn.invars, p["jaxpr"].jaxpr.invars, strict=True)):
        if k < consts:
            cuts.ask(atom, inner.at(var))
        elif k >= first:
            cuts.ask(atom, {dim + 1: points for dim, points in inner.at(var).items()})
