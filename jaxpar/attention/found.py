"""Attention as people write it, found in a jaxpr: a product, a softmax, another product.

Rows and heads may come in any order, queries may be grouped, scores may be scaled, and masked by
nothing or by a causal mask. Whatever else is done to scores or weights (dropout, a bias, a cap on
scores, a mask that comes with the batch) makes it another function, which is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import Literal

from jaxpar.attention.constants import Constants, NotConstant
from jaxpar.attention.cudnn import unfit
from jaxpar.attention.softmax import Readers, Unlike, softmax_of
from jaxpar.jaxprs.rules import rule_of

HIDDEN = -1e4
"""Scores that a mask puts at this or less weigh nothing beside any other."""

PAIRS_AT_ONCE = 1 << 22
"""Pairs of positions of a mask that are looked at together."""

_AS_THEY_ARE = ("convert_element_type", "copy")


@dataclass(frozen=True)
class Attention:
    """One attention in a jaxpr.

    Attributes:
        first, last: the product that makes scores, and the one that sums values.
        steps: the equations from one to the other, `first` among them.
        query, key, value: each its variable, and a name for each of its dims, of "row", "head",
            "group ...", "query", "key", "summed" and "width".
        result: a name for each dim of what `last` makes.
        causal: whether a query sees only keys up to its own position.
        scale: what scores are multiplied by.
    """

    first: Any
    last: Any
    steps: tuple[Any, ...]
    query: tuple[Any, tuple[str, ...]]
    key: tuple[Any, tuple[str, ...]]
    value: tuple[Any, tuple[str, ...]]
    result: tuple[str, ...]
    causal: bool
    scale: float


def attentions(constants: Constants) -> list[Attention]:
    """The attentions of an open jaxpr that can be fused."""
    readers = Readers(constants.jaxpr, constants.jaxpr.outvars)
    products = [e for e in constants.jaxpr.eqns if e.primitive is lax.dot_general_p]
    found = []
    for eqn in products if len(products) > 1 else ():
        try:
            found.append(_Walk(constants, readers, eqn).attention())
        except (Unlike, NotConstant):
            continue
    return found


class _Walk:
    """A way from a product along what is made of it, and what was seen on it."""

    def __init__(self, constants: Constants, readers: Readers, first: Any):
        self.constants, self.readers, self.first = constants, readers, first
        ((summed, batch), _), spec = _numbers(first), first.params.get("out_sharding")
        if len(summed) != 1 or not 1 <= len(batch) <= 2 or spec is not None:
            raise Unlike
        shared = [("row", "head")[sorted(batch).index(d)] for d in batch]
        self.operands = [
            _named_dims(first.invars[side].aval.ndim, summed, batch, shared, side)
            for side, (summed, batch) in enumerate(_numbers(first))
        ]
        self.free = [[d for d in dims if d[0] in "01"] for dims in self.operands]
        self.at, self.dims = first.outvars[0], [*shared, *self.free[0], *self.free[1]]
        self.steps, self.scale = [first], 1.0
        self.masks: list[Callable[[dict[str, Any]], np.ndarray]] = []

    def attention(self) -> Attention:
        """The attention that the product begins."""
        while (softmax := softmax_of(self.readers, self.at, tuple(self.dims))) is None:
            self.pass_scores(self.readers.only(self.at))
        key, self.at, self.dims = softmax.along, softmax.weights, list(softmax.dims)
        self.steps += softmax.steps
        if key[0] not in "01" or len(self.free[int(key[0])]) != 1:
            raise Unlike
        while (eqn := self.readers.only(self.at)).primitive is not lax.dot_general_p:
            self.pass_moved(eqn)
        return self.ended(eqn, key)

    def is_here(self, atom: Any) -> bool:
        """Whether an atom is the variable that was reached."""
        return self.readers.origin(atom) is self.at

    def pass_moved(self, eqn: Any) -> None:
        """Go on past an equation that only moves elements, or names or converts them."""
        if eqn.primitive.name == "transpose":
            self.dims = [self.dims[d] for d in eqn.params["permutation"]]
        elif eqn.primitive.name not in _AS_THEY_ARE:
            raise Unlike
        self.steps.append(eqn)
        self.at = eqn.outvars[0]

    def pass_scores(self, eqn: Any) -> None:
        """Go on past an equation of scores: moved, scaled or masked."""
        name = eqn.primitive.name
        if name not in ("mul", "div", "select_n", "add"):
            return self.pass_moved(eqn)
        others = [atom for atom in eqn.invars if not self.is_here(atom)]
        if len(others) != len(eqn.invars) - 1:
            raise Unlike
        if name == "select_n":
            self.mask(eqn)
        elif name == "add":
            self.masks.append(self.hidden_by(others[0]))
        elif self.masks:  # which would be scaled too
            raise Unlike
        elif name == "mul":
            self.scale *= self.constants.scalar(others[0])
        elif self.is_here(eqn.invars[0]):
            self.scale /= self.constants.scalar(others[0])
        else:
            raise Unlike
        self.steps.append(eqn)
        self.at = eqn.outvars[0]
        return None

    def mask(self, eqn: Any) -> None:
        """Note a mask: where scores are kept, and elsewhere hidden."""
        which, *cases = eqn.invars
        kept = next((k for k, case in enumerate(cases) if self.is_here(case)), None)
        if kept is None or len(cases) != 2 or not which.aval.ndim:
            raise Unlike
        if not self.constants.scalar(cases[1 - kept]) <= HIDDEN:
            raise Unlike
        dims = tuple(self.dims)
        self.masks.append(lambda at: self.constants.at(which, [at.get(d) for d in dims]) == kept)

    def hidden_by(self, bias: Any) -> Callable[[dict[str, Any]], np.ndarray]:
        """Where what is added to scores leaves them, if it hides them everywhere else."""
        dims = tuple(self.dims)

        def seen(at):
            added = self.constants.at(bias, [at.get(d) for d in dims] if bias.aval.ndim else [])
            if not np.all((added == 0) | (added <= HIDDEN)):
                raise Unlike
            return added == 0

        return seen

    def ended(self, last: Any, key: str) -> Attention:
        """The attention whose weights, of dims that are known, enter the product `last`."""
        side = next(k for k, atom in enumerate(last.invars) if self.is_here(atom))
        (summed, batch), (summed_value, batch_value) = (_numbers(last)[k] for k in (side, 1 - side))
        shared = [self.dims[d] for d in batch]
        value = _named_dims(last.invars[1 - side].aval.ndim, summed_value, batch_value, shared, 2)
        values_free = [d for d in value if d[0] == "2"]
        queries = self.free[1 - int(key[0])]
        if [self.dims[d] for d in summed] != [key] or len(values_free) != 1:
            raise Unlike
        if set(shared) != set(self.dims) - {key, *queries} or self.is_here(last.invars[1 - side]):
            raise Unlike
        left = [d for d in self.dims if d in queries]
        result = [*shared, *(left + values_free if side == 0 else values_free + left)]
        query, causal = self.seen(queries, key)
        names = {key: "key", query: "query", values_free[0]: "width"}
        names |= {d: f"group {d}" for d in queries if d != query}
        q_side = 1 - int(key[0])
        q, k = (
            (self.first.invars[s], _renamed(self.operands[s], names)) for s in (q_side, 1 - q_side)
        )
        v = last.invars[1 - side], _renamed(["key" if d == "summed" else d for d in value], names)
        _refuse_unfit(q, k, v)
        steps = (*self.steps, *self.readers.names_of(self.steps))
        made = _renamed(result, names)
        return Attention(self.first, last, steps, q, k, v, made, causal, self.scale)

    def seen(self, queries: Sequence[str], key: str) -> tuple[str, bool]:
        """Which of the queries' dims is that of positions, and whether the mask is causal."""
        sizes = {d: n for side in (0, 1) for d, n in self._sizes(side)}
        if not self.masks:
            return queries[0], False
        for query in queries:
            try:
                return query, self._is_causal(query, key, sizes[query], sizes[key])
            except NotConstant:
                continue
        raise Unlike

    def _sizes(self, side: int):
        """Each dim of an operand of the first product, by name, and its size."""
        return zip(self.operands[side], self.first.invars[side].aval.shape, strict=True)

    def _is_causal(self, query: str, key: str, length: int, keys: int) -> bool:
        """Whether the masks together are a causal one; or hide nothing, or else Unlike."""
        every = after = True
        run = max(1, PAIRS_AT_ONCE // keys)
        for start in range(0, length, run):
            rows = np.arange(start, min(start + run, length))[:, None]
            columns = np.arange(keys)[None]
            seen = np.ones((len(rows), keys), bool)
            for mask in self.masks:
                seen &= mask({query: rows, key: columns})
            every &= bool(seen.all())
            after &= bool((seen == (rows >= columns)).all())
            if not every and not (after and length == keys):
                raise Unlike
        return not every


def _numbers(product: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Of each operand of a product, the dims that are summed over and those of the batch."""
    summed, batch = product.params["dimension_numbers"]
    return list(zip(summed, batch, strict=True))


def _named_dims(rank: int, summed, batch, shared: Sequence[str], side: int) -> list[str]:
    """A name for each dim of an operand: what it is summed over, what it shares, and its own."""
    if len(summed) != 1:
        raise Unlike
    names = [f"{side}.{d}" for d in range(rank)]
    names[summed[0]] = "summed"
    for d, name in zip(batch, shared, strict=True):
        names[d] = name
    return names


def _renamed(dims: Sequence[str], names: dict[str, str]) -> tuple[str, ...]:
    """The dims by other names, those that have one."""
    return tuple(names.get(d, d) for d in dims)


def _refuse_unfit(query, key, value) -> None:
    """Unlike for operands that cuDNN cannot take."""
    (q, q_dims), (k, _), (v, v_dims) = query, key, value
    if any(isinstance(x, Literal) for x in (q, k, v)) or not q.aval.dtype == k.aval.dtype:
        raise Unlike
    head, width = q.aval.shape[q_dims.index("summed")], v.aval.shape[v_dims.index("width")]
    if v.aval.dtype != q.aval.dtype or unfit(q.aval.dtype, head, width):
        raise Unlike


def is_product(eqn: Any) -> bool:
    """Whether an equation may be one of an attention's two products."""
    return rule_of(eqn).kind == "product"
