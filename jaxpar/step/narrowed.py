"""How a loss reads its weights: cast to a narrower type first, or only in what is computed again.

A weight that is cast first can be cast before it is gathered, and is then half the bytes; its
gradient is summed over devices in the narrow type, in which it was made. One that only a
rematerialized part reads is gathered within it, and again in backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.interpreter import held_by
from jaxpar.jaxprs.rules import is_cast, rule_of

Reads = dict[str, list[Any]]
"""Path -> of each equation that reads the weight, the dtype that it casts to, or None."""


def narrowed(traced: TracedLoss) -> dict[str, np.dtype]:
    """Path -> the dtype to which the one reader of a weight casts it; of others, nothing.

    A weight of several readers is left out: the gradients that they give it are added in its own
    type.
    """
    jaxpr = traced.closed.jaxpr
    paths = dict(zip(jaxpr.invars, traced.arguments, strict=True))
    reads: Reads = {}
    _read(jaxpr, {v: path for v, path in paths.items() if path in traced.weights}, reads)
    return {
        path: found[0]
        for path, found in reads.items()
        if len(found) == 1 and found[0] is not None and _is_narrower(traced.arguments[path], found)
    }


def read_again(traced: TracedLoss) -> frozenset[str]:
    """The paths of weights that one rematerialized part of a loss reads, and nothing else."""
    reads: dict[str, list[bool]] = {}

    def walk(jaxpr, paths):
        for eqn in jaxpr.eqns:
            known = [None if isinstance(a, Literal) else paths.get(a) for a in eqn.invars]
            kind = rule_of(eqn).kind
            if kind == "call" and any(known):
                inner = zip(_held(eqn, kind).invars, known, strict=True)
                walk(_held(eqn, kind), {v: path for v, path in inner if path})
                continue
            for path in filter(None, known):
                reads.setdefault(path, []).append(kind == "remat")
        for path in {paths[v] for v in jaxpr.outvars if not isinstance(v, Literal) and v in paths}:
            reads.setdefault(path, []).append(False)

    jaxpr = traced.closed.jaxpr
    pairs = zip(jaxpr.invars, traced.arguments, strict=True)
    walk(jaxpr, {v: path for v, path in pairs if path in traced.weights})
    return frozenset(path for path, found in reads.items() if found == [True])


def _is_narrower(weight: Any, found: list[Any]) -> bool:
    """Whether a matrix is cast to a float of fewer bits; vectors are left as they are."""
    floats = jnp.issubdtype(found[0], jnp.floating) and jnp.issubdtype(weight.dtype, jnp.floating)
    return bool(floats) and len(weight.shape) > 1 and found[0].itemsize < weight.dtype.itemsize


def _read(jaxpr: Any, paths: Mapping[Any, str], reads: Reads) -> None:
    """Add the reads of weights in a jaxpr, given which of its variables are weights."""
    paths = dict(paths)
    for eqn in jaxpr.eqns:
        known = [None if isinstance(a, Literal) else paths.get(a) for a in eqn.invars]
        if not any(known):
            continue
        kind = rule_of(eqn).kind
        if is_cast(eqn):
            reads.setdefault(known[0] or "", []).append(np.dtype(eqn.params["new_dtype"]))
        elif kind in ("annotation", "view") and len(known) == 1 == len(eqn.outvars):
            paths[eqn.outvars[0]] = known[0] or ""
        else:
            inner = [*_inside(eqn, kind), *[None] * len(known)]
            pairs = [(v, path) for v, path in zip(inner, known, strict=False) if path]
            if any(v is not None for v, _ in pairs):
                _read(_held(eqn, kind), {v: path for v, path in pairs if v is not None}, reads)
            for v, path in pairs:
                if v is None:
                    reads.setdefault(path, []).append(None)
    for atom in jaxpr.outvars:
        if not isinstance(atom, Literal) and atom in paths:
            reads.setdefault(paths[atom], []).append(None)


def _held(eqn: Any, kind: str) -> Any:
    """The open jaxpr that an equation runs."""
    held = {"scan": "jaxpr", "layers": "body"}.get(kind)
    return open_jaxpr(eqn.params[held] if held else held_by(eqn))[0]


def _inside(eqn: Any, kind: str) -> list[Any]:
    """What an equation's operands are in the jaxpr that it runs, from the first on; None for one
    that is another thing there, as the carry of a loop is each turn."""
    if kind in ("call", "remat"):
        return list(_held(eqn, kind).invars)
    if kind == "scan":
        consts, end = scan_parts(eqn.params)
        variables = _held(eqn, kind).invars
        return [*variables[:consts], *[None] * (end - consts), *variables[end:]]
    if kind == "layers":
        return list(_held(eqn, kind).invars[: eqn.params["consts"] + eqn.params["stacked"]])
    return []
