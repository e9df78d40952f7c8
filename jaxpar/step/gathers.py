"""Which weights and state auto mode gathers for use, and how: told by what a loop takes apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from jax.sharding import PartitionSpec

from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.core.scopes import weight_scope
from jaxpar.jaxprs.interpreter import held_by
from jaxpar.jaxprs.rules import is_cast, rule_of
from jaxpar.layout.record import Array, Layout
from jaxpar.models.record import role_of
from jaxpar.step.constraints import constrained


def looped_over(jaxpr: Any, paths: Mapping[Any, str]) -> set[str]:
    """The weights that a loop takes apart, given the paths of the jaxpr's variables."""
    paths, found = dict(paths), set()
    for eqn in jaxpr.eqns:
        kind, p = rule_of(eqn).kind, eqn.params
        stacks: Any = ()
        if kind == "scan":
            stacks = eqn.invars[scan_parts(p)[1] :]
        elif kind == "layers":
            stacks = eqn.invars[p["consts"] : p["consts"] + p["stacked"]]
        elif kind in ("call", "remat"):
            inner = open_jaxpr(held_by(eqn))[0]
            pairs = zip(inner.invars, eqn.invars, strict=True)
            known = {v: paths[a] for v, a in pairs if _is_known(a, paths)}
            found |= looped_over(inner, known)
        elif is_cast(eqn) and _is_known(eqn.invars[0], paths):
            paths[eqn.outvars[0]] = paths[eqn.invars[0]]
        found |= {paths[a] for a in stacks if _is_known(a, paths)}
    return found


def _is_known(atom: Any, paths: Mapping[Any, str]) -> bool:
    """Whether an atom is a variable with a path."""
    return not isinstance(atom, Literal) and atom in paths


def is_stack(layout: Layout, array: Array) -> bool:
    """Whether an array is of equal layers, its first dim."""
    return bool(array.dims) and role_of(layout.model, array.dims[0]) == "layers"


def for_use(
    layout: Layout,
    array: Array,
    value: jax.Array,
    dtypes: Mapping[str, np.dtype],
    *,
    drop: int = 0,
) -> jax.Array:
    """A stored weight, cast and gathered as its use needs it; `drop` leading dims are gone.

    `dtypes` is what the loss casts weights to, by path.
    """
    if array.stored == array.used:
        return value
    dtype = dtypes.get(array.path, layout.model.compute_dtype)
    # The name ends up in the compiled program, where `inspect` reads whose gather it is.
    with weight_scope(array.path):
        if dtype is not None and value.ndim > 1 and array.path in layout.parameters:
            value = value.astype(dtype)  # before the gather: half the bytes
        value = constrained(layout, value, PartitionSpec(*array.stored[drop:]))
        return constrained(layout, value, PartitionSpec(*array.used[drop:]))


def kept_state(layout: Layout, state: Mapping[str, jax.Array]) -> dict[int, Array]:
    """Of the model's state what is stored sharded further than used, by the value's id."""
    arrays = layout.state.items()
    return {id(state[path]): a for path, a in arrays if a.stored != a.used}
