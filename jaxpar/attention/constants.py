"""Constants of a jaxpr, an element at a time: what a mask holds, without ever making it.

A mask of 32,768 positions is a gigabyte; what it says of a pair of positions follows from theirs.
Each array is a function of indices, and indices are broadcast against each other: a column of
query positions and a row of key positions make a table, and what depends on one of them alone
stays a column or a row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend.core import Literal

Indices = Sequence[np.ndarray | None]
"""Of each dim an array of places, or None: what is asked may not depend on that dim."""

_ELEMENTWISE: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "eq": np.equal,
    "ne": np.not_equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "stop_gradient": lambda x: x,
    "copy": lambda x: x,
    "named": lambda x: x,
    "name": lambda x: x,
}


class NotConstant(Exception):
    """What is asked for depends on an argument, on a dim without indices, or on an operation that
    is not known here."""


class Constants:
    """The constants of one open jaxpr."""

    def __init__(self, jaxpr: Any, consts: Sequence[Any], given: "Mapping[Any, Around]"):
        """Those of `jaxpr`, of whose arguments some are `given` by the jaxpr around it."""
        self.jaxpr, self._given = jaxpr, given
        self._values = dict(zip(jaxpr.constvars, consts, strict=True))
        self._made = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}

    def at(self, atom: Any, indices: Indices) -> np.ndarray:
        """The elements of an array at these indices, which broadcast against each other.

        Raises:
            NotConstant: they are not known.
        """
        if isinstance(atom, Literal):
            return _picked(np.asarray(atom.val), indices)
        if atom in self._values:
            return _picked(np.asarray(self._values[atom]), indices)
        if atom in self._given:
            around, outer = self._given[atom]
            return around.at(outer, indices)
        eqn = self._made.get(atom)
        if eqn is None or len(eqn.outvars) != 1:
            raise NotConstant
        return self._of(eqn, indices)

    def scalar(self, atom: Any) -> float:
        """The one number that an array holds throughout; NotConstant if it holds several."""
        return float(self.at(atom, [None] * atom.aval.ndim))

    def _of(self, eqn: Any, indices: Indices) -> np.ndarray:
        """The elements of an equation's result."""
        name, p = eqn.primitive.name, eqn.params
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](*(self.at(x, _own(x, indices)) for x in eqn.invars))
        if name == "select_n":
            which, *cases = (self.at(x, _own(x, indices)) for x in eqn.invars)
            if len(cases) != 2:
                raise NotConstant
            return np.where(which.astype(bool), cases[1], cases[0])
        if name == "convert_element_type":
            return self.at(eqn.invars[0], indices).astype(p["new_dtype"])
        if name == "iota":
            if (places := indices[p["dimension"]]) is None:
                raise NotConstant
            return places
        inner = _RESHAPED.get(name)
        if inner is None:
            raise NotConstant
        return self.at(eqn.invars[0], inner(eqn, indices))


Around = tuple[Constants, Any]
"""An argument as it is called in the jaxpr around: its constants, and the atom there."""


def _picked(array: np.ndarray, indices: Indices) -> np.ndarray:
    """The elements of an array; along a dim without indices it has to be the same throughout."""
    for dim, places in enumerate(indices):
        first = array.take([0], axis=dim) if array.shape[dim] else array
        if places is None:
            if not np.array_equal(first, array) and not (array == first).all():
                raise NotConstant
            array = first
    picks = [np.zeros((), int) if places is None else places for places in indices]
    return array[tuple(picks)]


def _own(atom: Any, indices: Indices) -> Indices:
    """The indices of an operand, which may be a scalar where the others are not."""
    return indices if getattr(atom.aval, "ndim", 0) else []


def _broadcast(eqn, indices: Indices) -> Indices:
    """The indices of what is broadcast; of dims that are stretched there is but one place."""
    dims, shape = eqn.params["broadcast_dimensions"], eqn.invars[0].aval.shape
    stretched = [n == 1 and eqn.params["shape"][d] != 1 for n, d in zip(shape, dims, strict=True)]
    pairs = zip(dims, stretched, strict=True)
    return [np.zeros((), int) if is_one else indices[d] for d, is_one in pairs]


def _transpose(eqn, indices: Indices) -> Indices:
    """The indices of what is transposed."""
    return [indices[eqn.params["permutation"].index(d)] for d in range(len(indices))]


def _same_elements(eqn, indices: Indices) -> Indices:
    """The indices before a reshape that adds or takes away dims of one place only."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    kept = [i for i, n in zip(indices, after, strict=True) if n != 1]
    if [n for n in before if n != 1] != [n for n in after if n != 1]:
        raise NotConstant
    rest = iter(kept)
    return [np.zeros((), int) if n == 1 else next(rest) for n in before]


def _slice(eqn, indices: Indices) -> Indices:
    """The indices of what is sliced."""
    p = eqn.params
    strides = p["strides"] or (1,) * len(indices)
    moved = zip(indices, p["start_indices"], strides, strict=True)
    return [None if i is None else i * stride + start for i, start, stride in moved]


_RESHAPED: Mapping[str, Callable[[Any, Indices], Indices]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _same_elements,
    "squeeze": _same_elements,
    "slice": _slice,
}
