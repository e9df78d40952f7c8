"""How the dims of a variable are spelled, once classes of dims have names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpar.core.roles import ONE, UNNAMED
from jaxpar.jaxprs.classes import Classes
from jaxpar.jaxprs.record import Scope, Trace


def spell(classes: Classes, names: Mapping[int, str], scope: Scope, var: Any) -> tuple[str, ...]:
    """The names of a variable's dims; of a dim with several factors, the outermost's."""
    spelled = []
    for dim in scope.dims[var]:
        nodes = classes.resolve(dim)
        spelled.append(names.get(nodes[0], UNNAMED) if nodes else ONE)
    return tuple(spelled)


def names_of(trace: Trace, dims: Mapping[str, tuple[str, ...]]) -> dict[int, str]:
    """Class -> the name that the arguments' dims give it, the first one said.

    Args:
        trace: from `relate`.
        dims: path -> a name for each dim of that argument, factors of one dim joined by `*`.
    """
    names: dict[int, str] = {}
    for path, said in dims.items():
        for dim, name in zip(trace.arguments.get(path, ()), said, strict=False):
            nodes, parts = trace.classes.resolve(dim), name.split("*")
            if len(parts) != len(nodes):
                # One name for a dim that the trace found to be a product: its outermost factor.
                nodes, parts = nodes[:1], parts[:1]
            for node, part in zip(nodes, parts, strict=False):
                if part not in (UNNAMED, ONE):
                    names.setdefault(node, part)
    return names
