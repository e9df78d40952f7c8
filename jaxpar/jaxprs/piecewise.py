"""A loss computed in pieces where it is cut anyway.

Queries, keys and values made by one matrix are one product, cut in three. A device that holds a run
of that matrix's columns has some queries and no keys; with each third a matrix of its own it has
the same heads of all three. So where arrays are put together only for what they make to be cut at
the same places, they are left apart: the same numbers, from products that can be split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxprs_in_params

from jaxpar.jaxprs.cuts import Cuts, carried, find_cuts, summed_dims
from jaxpar.jaxprs.interpreter import Interpreter, as_it_is, bound
from jaxpar.jaxprs.rules import factors, rule_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pieces:
    """An array as the parts that it is the concatenation of, along `dim`."""

    parts: tuple[Any, ...]
    dim: int = field(metadata={"static": True})

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of each part, along the dim."""
        return tuple(part.shape[self.dim] for part in self.parts)

    @property
    def points(self) -> tuple[int, ...]:
        """Where one part ends and the next begins."""
        return tuple(accumulate(self.sizes[:-1]))

    def between(self, start: int, limit: int) -> Any:
        """A run of positions along the dim, in pieces if it has several."""
        found, at = [], 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            low, high = max(start - at, 0), min(limit - at, size)
            if low < high:
                whole = (low, high) == (0, size)
                found.append(part if whole else lax.slice_in_dim(part, low, high, axis=self.dim))
            at += size
        if not found:  # a run of no position at all
            return lax.slice_in_dim(self.parts[0], 0, 0, axis=self.dim)
        return found[0] if len(found) == 1 else Pieces(tuple(found), self.dim)


def whole(value: Any) -> Any:
    """An array, put together if it is in pieces."""
    return lax.concatenate(value.parts, value.dim) if isinstance(value, Pieces) else value


def piecewise(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same function without the concatenations whose results are only cut again.

    >>> import jax.numpy as jnp
    >>> def f(x, q, k):
    ...     made = x @ jnp.concatenate([q, k], axis=1)
    ...     return made[:, :3] * made[:, 3:]
    >>> closed = jax.make_jaxpr(f)(jnp.ones((2, 4)), jnp.ones((4, 3)), jnp.ones((4, 3)))
    >>> [eqn.primitive.name for eqn in piecewise(closed).jaxpr.eqns]
    ['dot_general', 'dot_general', 'mul']
    """
    cuts = find_cuts(closed.jaxpr)
    if not _has_work(closed.jaxpr, cuts):
        return closed

    def function(*args):
        results = _InPieces().run(closed.jaxpr, closed.consts, args, cuts)
        return [whole(r) for r in results]

    return jax.make_jaxpr(function)(*closed.in_avals)


def in_pieces(closed: ClosedJaxpr, arguments: Sequence[Any]) -> tuple[ClosedJaxpr, list[Any]]:
    """The same function of other arguments: abstract arrays, or `Pieces` of them.

    What it hands on in pieces, such as a frozen weight, are results of their own: beside the
    function is what it makes for each result, an abstract array or `Pieces`.
    """
    cuts = find_cuts(closed.jaxpr, products=True)

    def function(*args):
        return _InPieces().run(closed.jaxpr, closed.consts, args, cuts)

    return jax.make_jaxpr(function, return_shape=True)(*arguments)


def evaluated_in_pieces(closed: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """The results of a function of arrays or `Pieces` of them, in pieces where they can be.

    A sum or a largest value over a dim in pieces is that of each piece's, put together.
    """
    return _Summed().run(closed.jaxpr, closed.consts, arguments, find_cuts(closed.jaxpr))


def _has_work(jaxpr, cuts: Cuts) -> bool:
    """Whether anything is put together that is cut again."""
    for index, eqn in enumerate(jaxpr.eqns):
        if _parted(eqn, cuts):
            return True
        for inner, called in zip(
            cuts.inner.get(index, []), jaxprs_in_params(eqn.params), strict=False
        ):
            if _has_work(called, inner):
                return True
    return False


def _parted(eqn, cuts: Cuts) -> list[int]:
    """At which of the ends of what is put together the result is cut again."""
    if eqn.primitive.name != "concatenate":
        return []
    at = eqn.params["dimension"]
    asked = cuts.at(eqn.outvars[0]).get(at, ())
    ends = accumulate(v.aval.shape[at] for v in eqn.invars[:-1])
    return [end for end in ends if end in asked]


class _InPieces(Interpreter):
    """Evaluates with some values as `Pieces`; beside each jaxpr are its `Cuts`."""

    def cond(self, eqn, operands, here):
        """The results of a conditional or a while loop, its operands' pieces joined before."""
        return as_it_is(eqn, [whole(x) for x in operands])

    while_loop = cond

    def carried(self, values, variables, beside):
        """A loop's carry, whole."""
        return [whole(x) for x in values]

    def scanned(self, stacks):
        """What a loop reads slice by slice; pieces along the scanned dim are joined."""
        return [whole(x) if isinstance(x, Pieces) and x.dim == 0 else x for x in stacks]

    def slices(self, slices, variables, beside):
        """One turn's slices: pieces are one dim further to the front."""
        return [_moved(x, -1) for x in slices]

    def put_together(self, stacks):
        """A loop's stacked results: pieces are one dim further to the back."""
        return [_moved(x, 1) for x in stacks]

    def leaf(self, eqn, operands, here):
        """An operation's results, in pieces where its operands are and its rule allows it."""
        if ends := _parted(eqn, here.beside):
            at = eqn.params["dimension"]
            joined = Pieces(tuple(whole(x) for x in operands), at)
            size = eqn.outvars[0].aval.shape[at]
            runs = [joined.between(*run) for run in pairwise((0, *ends, size))]
            return [Pieces(tuple(whole(x) for x in runs), at)]
        if not any(isinstance(x, Pieces) for x in operands):
            return as_it_is(eqn, operands)
        results = _cut(eqn, operands[0])
        if results is None:
            results = _sum_of_products(eqn, operands)
        if results is None and rule_of(eqn).is_piecewise:
            results = _piece_by_piece(eqn, operands)
        return as_it_is(eqn, [whole(x) for x in operands]) if results is None else results


class _Summed(_InPieces):
    """Evaluates in pieces, and reduces over the dim that is in pieces too."""

    def leaf(self, eqn, operands, here):
        """An operation's results; a reduction of pieces is one of each, and of these."""
        value, combine = operands[0] if operands else None, _COMBINED.get(eqn.primitive.name)
        if combine is not None and isinstance(value, Pieces) and value.dim in eqn.params["axes"]:
            each = [bound(eqn, [part], eqn.params)[0] for part in value.parts]
            return [reduce(combine, each)]
        return super().leaf(eqn, operands, here)


_COMBINED = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
}
"""What puts two reductions together."""


def _sum_of_products(eqn, operands) -> list | None:
    """The result of a product both of whose operands are in pieces along what it sums over."""
    dims = summed_dims(eqn)
    pairs = list(zip(operands, dims, strict=True)) if dims else []
    if not pairs or not all(isinstance(x, Pieces) and x.dim == dim for x, dim in pairs):
        return None
    left, right = operands
    if left.sizes != right.sizes:
        return None
    each = [bound(eqn, parts, eqn.params)[0] for parts in zip(left.parts, right.parts, strict=True)]
    return [reduce(lax.add, each)]


def _moved(value, by: int):
    """A value whose parts have gained or lost a leading dim."""
    return Pieces(value.parts, value.dim + by) if isinstance(value, Pieces) else value


def _cut(eqn, value) -> list | None:
    """The results of an equation that cuts along the dim that is in pieces."""
    name, p = eqn.primitive.name, eqn.params
    if not isinstance(value, Pieces) or name not in ("split", "unstack", "slice"):
        return None
    if name != "slice" and p["axis"] != value.dim:
        return None
    if name != "slice":
        sizes = p["sizes"] if name == "split" else [1] * len(eqn.outvars)
        runs = [value.between(*run) for run in pairwise((0, *accumulate(map(int, sizes))))]
        return runs if name == "split" else [lax.squeeze(whole(x), (value.dim,)) for x in runs]
    starts, limits = list(p["start_indices"]), list(p["limit_indices"])
    if p["strides"] and p["strides"][value.dim] != 1:
        return None
    part = value.between(starts[value.dim], limits[value.dim])
    if _only_along(eqn, value.dim):
        return [part]

    def along_others(one):
        starts[value.dim], limits[value.dim] = 0, one.shape[value.dim]
        return lax.slice(one, starts, limits, p["strides"])

    if isinstance(part, Pieces):
        return [Pieces(tuple(map(along_others, part.parts)), value.dim)]
    return [along_others(part)]


def _only_along(eqn, dim: int) -> bool:
    """Whether a slice takes all there is along every other dim."""
    pairs = zip(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, strict=True)
    return all(read == made for d, (read, made) in enumerate(pairs) if d != dim)


def _piece_by_piece(eqn, operands) -> list | None:
    """The results of an equation, each in pieces; None where it does not pass along that dim."""
    fac = factors(eqn)
    # A product's matrix comes last, and what it makes is to be cut as the matrix is, not as rows.
    there = [k for k, x in enumerate(operands) if isinstance(x, Pieces)]
    first = there[-1 if rule_of(eqn).kind == "product" else 0]
    lead, leading = operands[first], fac.operands[first][operands[first].dim]

    def beside(dims):
        """(dim, where it is cut) of the dim of an array that carries the factor in which `lead` is
        cut; None if none does, or not at all of the cuts."""
        for dim, ids in enumerate(dims):
            if points := carried(frozenset(lead.points), leading, ids, fac):
                return (dim, sorted(points)) if len(points) == len(lead.points) else None
        return None

    places = [place for dims in fac.results if (place := beside(dims)) is not None]
    if len(places) < len(fac.results):
        return None
    columns = []
    for x, atom, dims in zip(operands, eqn.invars, fac.operands, strict=True):
        place = beside(dims)
        if place is None:
            columns.append([whole(x)] * len(lead.parts))
            continue
        dim, points = place
        if not isinstance(x, Pieces) or x.dim != dim:
            x = Pieces((whole(x),), dim)
        runs = pairwise((0, *points, atom.aval.shape[dim]))
        columns.append([whole(x.between(*run)) for run in runs])
    made: list[list] = [[] for _ in places]
    for k, parts in enumerate(zip(*columns, strict=True)):
        params = _params(eqn, places, k, parts)
        for column, result in zip(made, bound(eqn, parts, params), strict=True):
            column.append(result)
    return [Pieces(tuple(c), dim) for c, (dim, _) in zip(made, places, strict=True)]


def _params(eqn, places, k: int, parts) -> dict[str, Any]:
    """The parameters of an equation, for its k-th piece, given the pieces of its operands."""
    p, rule = dict(eqn.params), rule_of(eqn)
    dim, points = places[0]
    shape = list(eqn.outvars[0].aval.shape)
    ends = (0, *points, shape[dim])
    shape[dim] = ends[k + 1] - ends[k]
    if eqn.primitive.name == "broadcast_in_dim":
        return {**p, "shape": tuple(shape)}
    if rule.on_shard is not None:
        return rule.on_shard(p, eqn, [jnp.shape(x) for x in parts], tuple(shape))
    return p
