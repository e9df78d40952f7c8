"""Why a collective is there: one sentence in the words of the field."""

from __future__ import annotations

from collections.abc import Iterable

from jaxpar.core.mesh import axes_of
from jaxpar.core.scopes import is_to_all
from jaxpar.hlo.values import axes_of_dim, names_of
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.stages import AXIS as STAGES
from jaxpar.layout.stages import runs_in_stages
from jaxpar.measures.explain.asked import Asked
from jaxpar.measures.explain.meaning import (
    ACTIVATION,
    COTANGENT,
    FIELD,
    GRADIENT,
    MESSAGES,
    NEW,
    OPTIMIZERS,
    SCALAR,
    STATE,
    STATISTIC,
    WEIGHT,
    Meaning,
)
from jaxpar.measures.explain.places import Places
from jaxpar.models.record import role_of

_REDUCING = ("all-reduce", "reduce-scatter")
_PERMUTES = ("collective-permute", "send")
_FOLDS = {"maximum": "maximum", "minimum": "minimum", "and": "conjunction", "or": "disjunction"}
_FOUND = ("lookup", "rows")
"""How partial results of lookups are made."""

_LOOKUPS = ("gather", "scatter-add", "scatter", "take")


def reason_of(one: Asked, meaning: Meaning, places: Places, kind: str) -> str:
    """The sentence for one collective; "" where none is certain.

    Args:
        one: it, in the partitioned module.
        meaning: what it moves.
        places: the arrays of the step.
        kind: what the finished program has in its place.
    """
    over = _listed(one.axes)
    layout = places.step.layout
    told = meaning.path and places.called(meaning.path)
    if meaning.is_a == WEIGHT and kind not in _REDUCING:
        return _weight(one, layout.parameters.get(meaning.path), told or "a weight", over, kind,
                       meaning.recomputed)  # fmt: skip
    if meaning.is_a == NEW:
        return (
            f"each device along {over} updates the shard of {told} whose optimizer state it "
            f"holds, and {told} is stored with fewer shards: the new value is gathered: "
            f"{kind} over {over}"
        )
    if one.kind in _REDUCING or kind in _REDUCING:
        return _reduced(one, meaning, layout, told, over, kind)
    if meaning.is_a in (STATE, OPTIMIZERS):
        of = f" of {told}" if told else ""
        return (
            f"the optimizer's rule needs values{of} that are sharded over {over}: {kind} over "
            f"{over}"
        )
    if kind in _PERMUTES or one.kind in _PERMUTES:
        return _permuted(one, meaning, layout, over, kind)
    return _moved(one, meaning, over, kind)


def _weight(
    one: Asked, array: Array | None, told: str, over: str, kind: str, recomputed: bool
) -> str:
    """Why a weight moves before it is used."""
    again = ", again for backward, which keeps no gathered weights" if recomputed else ""
    if kind == "all-to-all" and one.kind == "all-to-all":
        return (
            f"the rows of {told} that are looked up travel to the devices that ask for them, "
            f"instead of the table: all-to-all over {over}"
        )
    dims = _dims(array, one.axes) if array else ""
    where = f"its {dims} " if dims else ""
    return (
        f"{told} is stored with {where}sharded over {over}, and is used whole along {over}: its "
        f"shards are gathered before use{again}: {kind} over {over}"
    )


def _dims(array: Array, axes: Iterable[str]) -> str:
    """The dims of an array that these axes shard between uses, "dim `embed`"."""
    found = [
        f"dim `{dim}`"
        for dim, entry in zip(array.dims, array.stored, strict=True)
        if set(axes_of(entry)) & set(axes)
    ]
    return " and ".join(found)


def _reduced(one: Asked, meaning: Meaning, layout: Layout, told: str, over: str, kind: str) -> str:
    """Why values are reduced over devices."""
    ends = ", and each device keeps its shard" if kind == "reduce-scatter" else ""
    finish = f"{kind} over {over}{ends}"
    if is_to_all(one.name):
        return (
            f"the activation after the layers goes from the last stage to all, each of which "
            f"computes its share of the vocabulary; the others add zeros: {finish}"
        )
    last = one.name.rpartition("/")[2]
    held = one.value.partial if one.value else ()
    fold = (one.part.reducer, *_FOUND) if one.part.reducer else (*_FOLDS, "add", *_FOUND)
    partial = [p for p in held if p.axis in one.axes and p.by in fold]
    sure = sorted((p for p in partial if p.is_sure), key=str)
    names = _sharded(dict.fromkeys(n for p in sure for n in p.dims), layout, one.axes)
    along = f"{'dims' if len(names) > 1 else 'dim'} {_listed(names)}" if names else "dim"
    folds = {p.by for p in partial}
    if folds & set(_FOLDS):
        by = next(_FOLDS[f] for f in sorted(folds) if f in _FOLDS)
        return (
            f"this {by} runs over the {along}, sharded over {over}, so each device has that of "
            f"its own part: {finish}"
        )
    if folds & set(_FOUND) or (last in ("gather", "take") and meaning.is_a == ACTIVATION):
        return (
            f"the table that is looked up in is sharded along the {along} over {over}, so each "
            f"device finds the rows that it holds and zeros else: {finish}"
        )
    if meaning.is_a == GRADIENT:
        of = told or "several weights"
        rows = (
            f"runs over the {along}, sharded over {over}"
            if names
            else (f"is over what each device along {over} computes itself")
        )
        return (
            f"the sum in the gradient of {of} {rows}, so each device holds a partial sum: {finish}"
        )
    if meaning.is_a == SCALAR:
        return (
            f"the loss and the metrics are sums over the {along}, sharded over {over}, of which "
            f"each device has its own part: {finish}"
        )
    if meaning.is_a == STATISTIC:
        return f"statistics of the batch are sums over rows sharded over {over}: {finish}"
    if meaning.is_a in (OPTIMIZERS, STATE):
        return f"the optimizer's rule sums over values that are sharded over {over}: {finish}"
    if partial and (_is_product(one) or "dot_general" in one.name or last == "dot_general"):
        return (
            f"both operands of this product are sharded along the contracted {along} over {over}, "
            f"so each device holds a partial sum: {finish}"
        )
    if partial:
        return (
            f"this sum runs over the {along}, sharded over {over}, so each device holds a partial "
            f"sum: {finish}"
        )
    return _by_name(one, over, finish, layout)


def _sharded(names: Iterable[str], layout: Layout, axes: Iterable[str]) -> list[str]:
    """Those of the dims that a strategy shards over these axes.

    Of a dim of which each device has one element nothing is left in the program, and one beside it
    stands in its place.
    """
    strategy, wanted = layout.strategy, set(axes)
    tables = (strategy.compute, strategy.between)
    roles = {
        role for table in tables for role, entry in table.items() if wanted & set(axes_of(entry))
    }
    roles |= {role for axis in wanted for role in strategy.store.get(axis, ())}
    return [name for name in names if role_of(layout.model, name) in roles]


def _is_product(one: Asked) -> bool:
    """Whether what is reduced is a product."""
    return one.producer is not None and one.producer.opcode in ("dot", "convolution")


def _by_name(one: Asked, over: str, finish: str, layout: Layout) -> str:
    """Why values are reduced of which the module does not tell how they are sharded."""
    last = one.name.rpartition("/")[2]
    if last.startswith("psum") or last in ("pmax", "pmin", "pmean", "reduce_scatter"):
        return (
            f"the program asks for it by itself ({last}): each device along {over} has a part of "
            f"the result: {finish}"
        )
    if last in _LOOKUPS or (one.producer and one.producer.opcode in ("scatter", "gather")):
        return f"each device along {over} has other rows of this lookup or its transpose: {finish}"
    if _is_product(one):
        return f"each device along {over} holds a partial sum of this product: {finish}"
    if last:
        return f"each device along {over} has a part of the result of {last}: {finish}"
    return ""


def _permuted(one: Asked, meaning: Meaning, layout: Layout, over: str, kind: str) -> str:
    """Why values go from each device to another."""
    last = one.name.rpartition("/")[2]
    thing = _thing(meaning)
    if runs_in_stages(layout.strategy, layout.mesh) and STAGES in one.axes:
        to = {ACTIVATION: "the next one", COTANGENT: "the one before"}.get(meaning.is_a)
        return f"a stage hands {thing} of a microbatch to {to or 'a neighbour'}: {kind} over {over}"
    if "ppermute" in last or "collective_permute" in last:
        return (
            f"the program passes {thing} around the ring of {over} by itself (ppermute): {kind} "
            f"over {over}"
        )
    return (
        f"{thing} is needed with other shards over {over} after {last or 'resharding'}: "
        f"{kind} over {over}"
    )


def _thing(meaning: Meaning) -> str:
    """What is moved, for the middle of a sentence."""
    if meaning.is_a == MESSAGES:
        return "the activation, or the gradient of one,"
    if meaning.is_a in (ACTIVATION, COTANGENT):
        return "the activation" if meaning.is_a == ACTIVATION else "the gradient of an activation"
    return f"the {meaning.is_a}" + (f" {meaning.path}" if meaning.is_a == FIELD else "")


def _moved(one: Asked, meaning: Meaning, over: str, kind: str) -> str:
    """Why values are gathered, or change the dim along which they are sharded."""
    last = one.name.rpartition("/")[2]
    dims = ""
    if one.value is not None:
        found = [d for d in one.value.dims if axes_of_dim(d) & set(one.axes)]
        named = [name for d in found for name in names_of(d)]
        dims = f" along dim {_listed(named)}" if named else ""
    thing = _thing(meaning)
    if "all-to-all" in (kind, one.kind):
        return (
            f"{thing} is sharded{dims} over {over} before {last} and along another dim after it: "
            f"{kind} over {over}"
        )
    return (
        f"{thing} is sharded{dims} over {over}, and {last or 'what reads it'} needs it "
        f"whole there: {kind} over {over}"
    )


def _listed(names: Iterable[str]) -> str:
    """Names for a sentence, "`data` and `model`"."""
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]]))
