"""Weights stored as the pieces that the loss cuts their products into.

One matrix for queries, keys and values, or for a gate and what it gates, is stored as one matrix
for each, so that all of them can be sharded by the same heads or columns. While the module is
called it has the whole one, as it was written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jaxpar.inference.judge import judge
from jaxpar.jaxprs.cuts import MOST, find_cuts
from jaxpar.jaxprs.piecewise import Pieces, in_pieces
from jaxpar.jaxprs.unify import relate
from jaxpar.models.modules import take_apart, value_of
from jaxpar.models.pieces import Cut, owners, pieces_of

Reasons = dict[tuple[str, int], tuple[str, str]]
"""(path of a weight, dim) -> why it is not sharded, a sentence and where."""

_SPLIT = frozenset({"inner", "heads", "experts", "vocabulary"})


def worth_cutting(
    closed: Any,
    arguments: Mapping[str, Any],
    weights: Collection[str],
    fields: Mapping[str, Any],
    results: Sequence[str] = (),
    never: Collection[str] = (),
) -> tuple[dict[str, Cut], Reasons]:
    """Path -> cut, of every weight of which pieces can be sharded and that could not be in one.

    Beside it is why dims of others would not be, in pieces either. State that the loss makes of
    what is cut, such as a running average, is cut alike.

    Args:
        closed: the loss's ClosedJaxpr.
        arguments: path -> abstract array, in the order of its arguments.
        weights: paths of what is learned or frozen.
        fields: path -> abstract array of the batch.
        results: the path of each result of the loss that is state; "" of one that is none.
        never: what cannot be cut.
    """
    why: Reasons = {}
    asked = find_cuts(closed.jaxpr, products=True)
    offered = {}
    for var, (path, array) in zip(closed.jaxpr.invars, arguments.items(), strict=True):
        dims = {d: sorted(p) for d, p in asked.at(var).items() if len(p) < MOST}
        if len(dims) > 1:  # a filter whose taps are read one by one is no cut of them
            dims = {d: points for d, points in dims.items() if len(points) < array.shape[d] - 1}
        if path in weights and path not in never and len(dims) == 1:
            [(dim, points)] = dims.items()
            ends = pairwise((0, *points, array.shape[dim]))
            offered[path] = Cut(dim, tuple(end - start for start, end in ends))

    def tried(cuts: dict[str, Cut]) -> dict[str, Cut]:
        while cuts:
            # What is left whole may be what another's pieces needed.
            kept = _splittable(closed, arguments, weights, fields, cuts, why)
            if kept == cuts:
                break
            cuts = kept
        return cuts

    found = tried(offered)
    alike = _cut_alike(offered)
    if not found.keys() >= offered.keys() and len(alike) > 1:
        # A cut that is good for nothing, such as of a table's rows, may spoil the trial of others.
        better = tried({path: cut for cuts in alike for path, cut in tried(cuts).items()})
        found = max(found, better, key=len)
    return _followed(closed, arguments, results, found, never), why


def _followed(closed, arguments, results, cuts, never) -> dict[str, Cut]:
    """The cuts, and those of the state that the loss then makes in pieces."""
    while cuts:
        _, made = in_pieces(closed, _values(arguments, cuts)[0])
        more = {
            path: Cut(value.dim, value.sizes)
            for path, value in zip(results, made, strict=False)
            if path and path not in cuts and path not in never and isinstance(value, Pieces)
        }
        if not more:
            break
        cuts = {**cuts, **more}
    return cuts


def _cut_alike(cuts: Mapping[str, Cut]) -> list[dict[str, Cut]]:
    """The cuts, those into the same sizes together: a matrix's and its bias's, of every layer."""
    alike: dict[tuple[int, ...], dict[str, Cut]] = {}
    for path, cut in cuts.items():
        alike.setdefault(cut.sizes, {})[path] = cut
    return list(alike.values())


def _splittable(closed, arguments, weights, fields, offered, why: Reasons) -> dict[str, Cut]:
    """Those cuts of which a piece could be split, if all of them were made; `why` is added to.

    The others stay whole beside it, as what all heads share does; those that lie side by side stay
    in one.
    """
    closed, pieces = held(closed, arguments, offered)
    learned = {piece: pieces[piece] for path in weights for piece in pieces_of(path, offered)}
    trace = relate(closed, pieces, list(learned))
    judgement = judge(trace, learned, fields)
    roles = judgement.roles

    def gained(path: str, cut: Cut) -> Cut:
        pieces = pieces_of(path, offered)
        firsts = [trace.classes.resolve(trace.arguments[piece][cut.dim])[:1] for piece in pieces]
        split = [bool(nodes) and roles.get(nodes[0]) in _SPLIT for nodes in firsts]
        for nodes in firsts:
            what, where = judgement.kept.get(nodes[0] if nodes else -1, ("", None))
            if isinstance(where, str):  # a sentence, which is not of this cut
                for one, weight in owners(offered).items():
                    where = where.replace(f"'{one}'", f"'{weight}'")
                why.setdefault((path, cut.dim), (what, where))
        sizes: list[int] = []
        for k, size in enumerate(cut.sizes):
            if k and not split[k] and not split[k - 1]:
                sizes[-1] += size
            else:
                sizes.append(size)
        return Cut(cut.dim, tuple(sizes))

    found = {path: gained(path, cut) for path, cut in offered.items()}
    return {path: cut for path, cut in found.items() if len(cut.sizes) > 1}


def held(closed: Any, arguments: Mapping[str, Any], cuts: Mapping[str, Cut]):
    """A loss as a function of pieces: its ClosedJaxpr, and its abstract arguments by path."""
    values, flat = _values(arguments, cuts)
    return in_pieces(closed, values)[0], flat


def _values(arguments: Mapping[str, Any], cuts: Mapping[str, Cut]):
    """Abstract arguments with these in pieces: one for each, and every array by its path."""
    flat, values = {}, []
    for path, array in arguments.items():
        if path not in cuts:
            values.append(array)
            flat[path] = array
            continue
        parts = cuts[path].of(array)
        values.append(Pieces(parts, cuts[path].dim))
        flat |= dict(zip(pieces_of(path, cuts), parts, strict=True))
    return values, flat


def cut_in(module: nnx.Module, trainable: Any, cuts: Mapping[str, Cut]) -> None:
    """Hold some variables of a module in pieces, in place: `path/0`, `path/1`, ..."""
    if not cuts:
        return
    parts = take_apart(module, trainable)
    pairs = []
    for path, cut in cuts.items():
        variable = _at(module, parts.keys[path])
        pieces = [variable.replace(piece) for piece in cut.of(value_of(variable))]
        pairs.append((variable, nnx.List(pieces)))
    _exchange(module, pairs)


@contextmanager
def whole(module: nnx.Module, cuts: Mapping[str, Cut]) -> Iterator[None]:
    """While it lasts, the module has whole variables where it holds pieces; what of them is then
    changed is so in the pieces afterwards."""
    keys = take_apart(module).keys if cuts else {}
    pairs = []
    for path, cut in cuts.items():
        node = _at(module, keys[pieces_of(path, cuts)[0]][:-1])
        pieces = [piece.get_value() for piece in node]
        pairs.append((node, node[0].replace(jnp.concatenate(pieces, cut.dim))))
    before = [one.get_value() for _, one in pairs]
    _exchange(module, pairs)
    try:
        yield
        for (node, one), value, cut in zip(pairs, before, cuts.values(), strict=True):
            if (after := one.get_value()) is not value:
                for piece, part in zip(node, cut.of(after), strict=True):
                    piece.set_value(part)
    finally:
        _exchange(module, [(one, node) for node, one in pairs])


def _at(module: Any, keys: Sequence[Any]) -> Any:
    """The node of a module under Flax's keys of a path."""
    node = module
    for key in keys:
        node = getattr(node, key) if isinstance(key, str) and hasattr(node, key) else node[key]
    return node


def _exchange(module: nnx.Module, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Replace each (old, new) node in place, wherever a module refers to the old one."""
    news = {id(old): new for old, new in pairs}
    for _, holder in list(nnx.iter_graph(module)) if news else ():
        if isinstance(holder, dict):
            for key in [k for k, value in holder.items() if id(value) in news]:
                holder[key] = news[id(holder[key])]
        elif isinstance(holder, list | nnx.List):
            for at in [k for k, value in enumerate(holder) if id(value) in news]:
                holder[at] = news[id(holder[at])]
        elif isinstance(holder, nnx.Pytree):
            for name in [n for n, value in vars(holder).items() if id(value) in news]:
                setattr(holder, name, news[id(getattr(holder, name))])
