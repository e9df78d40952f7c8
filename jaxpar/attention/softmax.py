"""A softmax in a jaxpr: its exponentials over their sum, whatever was subtracted before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Literal

from jaxpar.jaxprs.interpreter import held_by

_NAMES = ("named", "name")
_UNCHANGED = ("convert_element_type", "stop_gradient", "copy")

Dims = tuple[str, ...]
"""A name for each dim of an array; "" for one that was made by a broadcast."""


class Unlike(Exception):
    """What was looked at is not what was looked for."""


class Readers:
    """Who reads each variable of an open jaxpr, an array that is named being what it names."""

    def __init__(self, jaxpr: Any, results: Sequence[Any]):
        """The readers within `jaxpr`; its `results` are read by others."""
        self._of: dict[Any, list[Any]] = {}
        self._origin: dict[Any, Any] = {}
        self._names: dict[Any, list[Any]] = {}
        for eqn in jaxpr.eqns:
            atoms = {self.origin(a) for a in eqn.invars if not isinstance(a, Literal)}
            if eqn.primitive.name in _NAMES:
                (source,) = atoms
                self._origin[eqn.outvars[0]] = source
                self._names.setdefault(source, []).append(eqn)
                continue
            for atom in atoms:
                self._of.setdefault(atom, []).append(eqn)
        self._results = {self.origin(v) for v in results if not isinstance(v, Literal)}

    def origin(self, atom: Any) -> Any:
        """The variable that an atom is, or is a name of; itself for a literal."""
        return atom if isinstance(atom, Literal) else self._origin.get(atom, atom)

    def of(self, var: Any) -> list[Any]:
        """The equations that read a variable; Unlike if it is a result too."""
        if var in self._results:
            raise Unlike
        return self._of.get(var, [])

    def only(self, var: Any) -> Any:
        """The one equation that reads a variable; Unlike if there are several, or none."""
        readers = self.of(var)
        if len(readers) != 1:
            raise Unlike
        return readers[0]

    def names_of(self, eqns: Iterable[Any]) -> list[Any]:
        """The equations that name what these equations make."""
        return [name for eqn in eqns for v in eqn.outvars for name in self._names.get(v, ())]


@dataclass(frozen=True)
class Softmax:
    """A softmax of a variable.

    Attributes:
        weights: the variable that it makes.
        dims: a name for each of its dims.
        along: the name of the dim along which the weights add up to one.
        steps: the equations that make them.
    """

    weights: Any
    dims: Dims
    along: str
    steps: tuple[Any, ...]


def softmax_of(readers: Readers, var: Any, dims: Dims) -> Softmax | None:
    """The softmax that a variable with these dims goes into, or None where it goes elsewhere.

    Raises:
        Unlike: it looks like one, and is none.
    """
    by_name = {eqn.primitive.name: eqn for eqn in readers.of(var)}
    if set(by_name) == {"custom_jvp_call"}:
        return _held(by_name["custom_jvp_call"], dims)
    largest = by_name.pop("reduce_max", None)
    if largest is None or len(by_name) != 1 or len(readers.of(var)) != 2:
        return None
    (eqn,) = by_name.values()
    moved, to_difference = dims, []
    while eqn.primitive.name == "transpose":
        moved, to_difference = _moved(eqn, moved), [*to_difference, eqn]
        var = eqn.outvars[0]
        eqn = readers.only(var)
    if eqn.primitive.name != "sub" or readers.origin(eqn.invars[0]) is not var:
        raise Unlike
    along, steps = _reduced(readers, largest, dims, eqn, moved)
    exponential = readers.only(eqn.outvars[0])
    if exponential.primitive.name != "exp":
        raise Unlike
    made = exponential.outvars[0]
    by_name = {one.primitive.name: one for one in readers.of(made)}
    ratio = by_name.pop("div", None)
    if ratio is None or readers.origin(ratio.invars[0]) is not made or len(by_name) != 1:
        raise Unlike
    (total,), wider = by_name.values(), []
    while total.primitive.name == "convert_element_type":  # narrow numbers are summed as wide ones
        wider.append(total)
        total = readers.only(total.outvars[0])
    if total.primitive.name != "reduce_sum":
        raise Unlike
    summed, rest = _reduced(readers, total, moved, ratio, moved)
    if summed != along:
        raise Unlike
    steps = (*to_difference, *steps, eqn, exponential, *wider, *rest, ratio)
    return Softmax(ratio.outvars[0], moved, along, steps)


def _reduced(readers, reduction, dims: Dims, join, joined: Dims) -> tuple[str, list[Any]]:
    """The dim along which `reduction` reduces an array of `dims`, and the equations by which its
    result becomes the second operand of `join`, whose dims are `joined`."""
    if len(reduction.params["axes"]) != 1:
        raise Unlike
    (axis,) = reduction.params["axes"]
    names, steps = (*dims[:axis], *dims[axis + 1 :]), [reduction]
    at = reduction.outvars[0]
    while (eqn := readers.only(at)) is not join:
        names = _named_after(readers, eqn, at, names)
        steps.append(eqn)
        at = eqn.outvars[0]
    along = dims[axis]
    if readers.origin(join.invars[1]) is not at or names != tuple(
        "" if d == along else d for d in joined
    ):
        raise Unlike
    return along, steps


def _named_after(readers, eqn, var, names: Dims) -> Dims:
    """The names of the dims of what an equation makes of a variable with such names."""
    name, p = eqn.primitive.name, eqn.params
    if name in _UNCHANGED or name == "max" and _is_lowest(readers, eqn, var):
        return names
    if name == "transpose":
        return _moved(eqn, names)
    if name == "broadcast_in_dim":
        made = [""] * len(p["shape"])
        for d, one in zip(p["broadcast_dimensions"], names, strict=True):
            made[d] = one
        return tuple(made)
    if name == "reshape":  # one that only adds a dim of one place
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        places = [d for d in range(len(after)) if after[:d] + (1,) + before[d:] == after]
        if places and len(set(names)) == len(names):
            d = places[-1]
            return (*names[:d], "", *names[d:])
    raise Unlike


def _is_lowest(readers, eqn, var) -> bool:
    """Whether an equation compares a variable with what is below every number."""
    return any(
        isinstance(atom, Literal) and float(atom.val) == float("-inf")
        for atom in eqn.invars
        if readers.origin(atom) is not var
    )


def _moved(eqn, names: Dims) -> Dims:
    """The names of the dims of what is transposed."""
    return tuple(names[d] for d in eqn.params["permutation"])


def _held(eqn, dims: Dims) -> Softmax:
    """The softmax that a function with a derivative of its own holds."""
    inner = held_by(eqn).jaxpr
    if len(eqn.invars) != 1 or len(inner.outvars) != 1:
        raise Unlike
    within = Readers(inner, ())
    found = softmax_of(within, inner.invars[0], dims)
    if found is None or found.weights is not within.origin(inner.outvars[0]) or found.dims != dims:
        raise Unlike
    return Softmax(eqn.outvars[0], dims, found.along, (eqn,))
