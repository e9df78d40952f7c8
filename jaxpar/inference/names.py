"""Names for classes of dims: what their role suggests, told apart by where they first appear.

A class is known by the weights that have it, in the natural order of their paths, so that its name
depends neither on the order in which a loss is written nor on a variable's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxpar.core.roles import ONE
from jaxpar.core.source_lines import line_of
from jaxpar.inference.account import Account
from jaxpar.inference.judge import Judgement
from jaxpar.jaxprs.record import Trace


@dataclass(frozen=True)
class NamedDim:
    """One class of dims, as people see it.

    Attributes:
        name, role, size: what it is called, what it does, how large it is.
        places: where it appears, as "path[dim]".
        whole_because: why a class that looked like one to shard stays replicated, or "".
        whole_at: the line of the model that needs it so, or "".
    """

    name: str
    role: str
    size: int
    places: tuple[str, ...]
    whole_because: str = ""
    whole_at: str = ""


@dataclass(frozen=True)
class Names:
    """The names of everything that a loss was given.

    Attributes:
        dims: the classes, in order of their names' first places.
        of: path -> a name for each dim of that argument; factors of one dim are joined by `*`.
        roles: name -> role, for every name in `of`.
        units: name -> how many shards such a dim can have at most.
        by_class: class -> name.
    """

    dims: tuple[NamedDim, ...]
    of: Mapping[str, tuple[str, ...]]
    roles: Mapping[str, str]
    units: Mapping[str, int]
    by_class: Mapping[int, str]


def christen(
    trace: Trace,
    judgement: Judgement,
    *,
    fields: Sequence[str],
    given: Mapping[str, Sequence[str | None]] | None = None,
    told: Mapping[str, str] | None = None,
) -> Names:
    """Name every class that an argument of the loss has.

    Args:
        trace, judgement: of the loss.
        fields: those of the arguments that are the batch.
        given: path -> names of its dims, None where nobody said, from metadata or the user.
        told: name -> role, where the user knows better.
    """
    resolve = trace.classes.resolve
    places: dict[int, list[tuple[str, int]]] = {}
    for path in sorted(trace.arguments, key=lambda p: (p in fields, _natural(p))):
        for at, dim in enumerate(trace.arguments[path]):
            for node in resolve(dim):
                places.setdefault(node, []).append((path, at))
    said = _said(trace, given or {}, resolve)
    # Rows alone are called so, also where metadata says it of a weight.
    said = {n: name for n, name in said.items() if name != "batch" or judgement.roles[n] == name}
    bases = {
        node: said.get(node) or _base(node, judgement, where, trace, fields)
        for node, where in places.items()
    }
    by_class = _apart(bases, judgement, said)
    roles = {
        by_class[node]: (told or {}).get(by_class[node], judgement.roles[node]) for node in places
    }
    units = {by_class[n]: trace.classes.size(n) for n in places if judgement.roles[n] != "batch"}
    of = {}
    for path, dims in trace.arguments.items():
        names = []
        for dim in dims:
            nodes = resolve(dim)
            name = "*".join(by_class[n] for n in nodes) or ONE
            if len(nodes) > 1:
                roles[name] = roles[by_class[nodes[0]]]
                if roles[name] != "batch":
                    units[name] = trace.classes.size(nodes[0])
            names.append(name)
        if path in fields and names[0] == ONE:  # of one row
            names[0], roles["batch"] = "batch", "batch"
        of[path] = tuple(names)
    if any(ONE in names for names in of.values()):
        roles[ONE] = "feature"
    rows: dict[str, NamedDim] = {}
    for node, where in places.items():
        name = by_class[node]
        seen = rows[name].places if name in rows else ()
        rows[name] = NamedDim(
            name,
            roles[name],
            trace.classes.size(node),
            (*seen, *(f"{path}[{at}]" for path, at in where)),
            *_reason(judgement, node),
        )
    return Names(tuple(rows.values()), of, roles, units, by_class)


def _said(trace, given, resolve) -> dict[int, str]:
    """Names that metadata or the user gave, by class; the first one said holds."""
    said: dict[int, str] = {}
    for path in sorted(given, key=_natural):
        for dim, name in zip(trace.arguments[path], given[path], strict=True):
            nodes = resolve(dim)
            if name is None or not nodes:
                continue
            parts = name.split("*") if name.count("*") == len(nodes) - 1 else [name]
            for node, part in zip(nodes, parts, strict=False):
                said.setdefault(node, part)
    return said


_TABLES = re.compile(r"(pos(?:ition|_)|wpe)|token_type|segment", re.I)
"""Paths of tables that are looked up by something else than a token."""


def _base(node, judgement: Judgement, where, trace, fields) -> str:
    """What a class would be called if it were the only one of its kind."""
    found: Account = judgement.accounts[node]
    role = judgement.roles[node]
    path, at = where[0]
    if role in ("batch", "layers", "experts", "heads", "sequence"):
        return role
    if role == "vocabulary" or found.looked_up:
        if found.looked_up and (told := _TABLES.search(path)):
            return "positions" if told[1] else "types"
        return "vocab" if found.looked_up or (found.matched and found.spent) else "classes"
    if found.convolved and found.made:
        return "channels"
    if role == "inner":
        return "ffn"
    if role == "residual":
        return "embed"
    if found.companion == "heads":
        return "group" if found.paired or found.pairings > 1 else "head_dim"
    if found.paired:
        return "heads"
    if found.companion == "experts":
        return "expert_ffn"
    if found.windowed:
        rank = len(trace.arguments[path])
        if path in fields and 0 < at < rank - 1:
            return ("height", "width", "depth")[at - 1] if 3 < rank < 6 else "length"
        return "window"
    if found.picked or (found.made and not found.spent):
        return "outputs" if not found.picked else "classes"
    if found.spent and path in fields:
        return "inputs"
    if found.spent and not found.made:
        return "inputs"
    if found.placed:
        return "positions"
    return "width" if path not in fields else "feature"


def _apart(bases: Mapping[int, str], judgement: Judgement, said: Mapping[int, str]) -> dict:
    """Number the classes that would share a name; those that a person named alike may share it."""
    groups: dict[str, list[int]] = {}
    for node, base in bases.items():  # in the order of their first places
        groups.setdefault(base, []).append(node)
    names = {}
    for base, nodes in groups.items():
        alike = {(judgement.roles[n], judgement.accounts[n].size) for n in nodes}
        if len(nodes) == 1 or (len(alike) == 1 and all(n in said for n in nodes)):
            names |= dict.fromkeys(nodes, base)
        elif judgement.roles[nodes[0]] in ("batch",):
            names |= dict.fromkeys(nodes, base)
        else:
            names |= {node: f"{base}_{k}" for k, node in enumerate(nodes)}
    return names


def _reason(judgement: Judgement, node: int) -> tuple[str, str]:
    """Why a class of dims stays replicated, and the line that needs it so; "" if it does not."""
    what, where = judgement.kept.get(node, ("", None))
    if where is None or isinstance(where, str):
        return what, where or ""
    return f"'{what}' needs it whole", line_of(where)


def _natural(path: str) -> tuple:
    """Order paths as people do: blocks/2 before blocks/10."""
    return tuple(
        (0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", path) if p
    )
