"""Every collective of a compiled program: its groups, bytes, executions, source and mesh axes.

`collectives(hlo.parse(text))` lists what crosses devices; `axes_of` says along which axes of a mesh
each does. Records in, frozen records out: no jax, no device. A spelling that is not understood
raises ValueError rather than being left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import prod

import numpy as np

from jaxpar.hlo.executions import Times, executions
from jaxpar.hlo.frames import Frame
from jaxpar.hlo.parse import Computation, Instruction, Module, bytes_of

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip

_PAIRS = re.compile(r'source_target_pairs="?(\{(?:\{\d{1,18},\d{1,18}\},?)*\})')
_LISTS = re.compile(r"\{(?:\{\d{1,18}(?:,\d{1,18})*\},?)+\}")
_GROUPS = re.compile(
    r"replica_groups=(\{\}|\{[\d,{}]*\}|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?"
    r"|mesh\[[^{}]* \{[^{}]*\})(?:,|$)"
)
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[([^\]]*)\](?:, device_ids=\((.*)\))? \{(.*)\}")
_AXIS = re.compile(r"['\"]?([^,='\"]+)['\"]?=(\d{1,18})")
_PART = re.compile(r"['\"]?([^,:'\"]+)['\"]?(?::\((\d{1,18})\)(\d{1,18}))?")


@dataclass(frozen=True)
class Collective:
    """One collective operation, its start and done counted as one.

    `bytes_each` is the whole payload of one execution as one member of a group sees it: the
    unreduced array of an all-reduce or reduce-scatter, the gathered array of an all-gather, what
    one device hands over otherwise (for ragged-all-to-all: at most). `is_async` says that other
    work may run between start and done. A collective the compiler combined has lost its source;
    it gets that of its nearest operand that has one, and is marked `borrowed`.
    """

    name: str
    kind: str
    groups: tuple[tuple[int, ...], ...]  # partition ids; empty for a permute
    pairs: tuple[tuple[int, int], ...]  # (source, target), of a permute only
    bytes_each: int
    executions: int | Fraction  # the mean over devices, where they take different branches
    exact: bool
    is_async: bool
    op_name: str
    frames: tuple[Frame, ...]
    borrowed: bool
    operands: tuple[str, ...]
    computation: str
    dtypes: tuple[str, ...] = ()  # of the payload, each once


def collectives(module: Module) -> tuple[Collective, ...]:
    """Return every collective that moves bytes between devices, in the order of the text.

    Those inside groups of one, or that never run, are left out. A `send` with source and target
    pairs is one half of a split permute and is listed as a collective-permute.
    """
    runs = executions(module)
    everything = [(c, i) for c in module.computations.values() for i in c.instructions]
    detached = {name for _, i in everything if i.opcode == "async-start" for _, name in i.calls}
    found = []
    for computation, i in everything:
        kind = i.opcode.removesuffix("-start")
        crosses = kind in KINDS or (kind == "send" and _PAIRS.search(i.attributes))
        if crosses and computation.name in runs:
            starts = kind != i.opcode or kind == "send" or computation.name in detached
            one = _collective(module, computation, i, runs[computation.name], starts)
            if any(len(set(members)) > 1 for members in one.groups or one.pairs):
                found.append(one)
    return tuple(found)


def _collective(
    module: Module, computation: Computation, i: Instruction, runs: Times, starts: bool
) -> Collective:
    """The record of one collective instruction that runs `runs` times.

    `starts` says whether it is the start of an asynchronous pair.
    """
    kind = i.opcode.removesuffix("-start").replace("send", "collective-permute")
    groups, pairs = (), ()
    if kind != "collective-permute":
        groups = _groups(module, i, kind)
    elif match := _PAIRS.search(i.attributes):
        pairs = tuple((int(a), int(b)) for a, b in re.findall(r"(\d+),(\d+)", match[1]))
    else:
        raise ValueError(f"{i.name}: no source_target_pairs in {i.attributes[:200]!r}")
    # Of the six operands of a ragged-all-to-all and the two of a send, the first is the payload.
    whole = not (kind == "ragged-all-to-all" or i.opcode == "send")
    operands = i.operands if whole else i.operands[:1]
    payload = sum(bytes_of(s) for name in operands for s in computation.by_name[name].shapes)
    source = _source(module, computation, i)
    return Collective(
        name=i.name, kind=kind, groups=groups, pairs=pairs,
        bytes_each=payload * (max(map(len, groups)) if kind == "all-gather" else 1),
        executions=runs.times, exact=runs.exact,
        # `is_sync` is the scheduler's word that nothing is between this start and its done.
        is_async=starts and '"is_sync":true' not in i.attributes,
        op_name=source.op_name, frames=source.frames, borrowed=source is not i,
        operands=i.operands, computation=computation.name,
        dtypes=tuple(dict.fromkeys(s[0] for n in operands for s in computation.by_name[n].shapes)),
    )  # fmt: skip


def _source(module: Module, computation: Computation, i: Instruction) -> Instruction:
    """Return the instruction itself, or the nearest behind it whose metadata was kept."""
    if i.op_name or i.frames:
        return i
    queue, seen = [(computation, i)], {i.name}
    for where, candidate in queue:  # breadth first: the list grows while we walk it
        if candidate.frames:
            return candidate
        behind = [(where, where.by_name[name]) for name in candidate.operands]
        if candidate.opcode == "fusion":
            fused = module.computations[candidate.calls[0][1]]
            behind.insert(0, (fused, fused.root))
        queue += [(w, o) for w, o in behind if o.name not in seen]
        seen.update(o.name for _, o in behind)
    return i


def _groups(module: Module, i: Instruction, kind: str) -> tuple[tuple[int, ...], ...]:
    """The groups of partitions that a collective runs in; ValueError if they cannot be read."""
    at = i.attributes.find("replica_groups=")
    match = _GROUPS.match(i.attributes, at) if at >= 0 else None
    if match is None:
        raise ValueError(f"{i.name}: no replica_groups that we can read: {i.attributes[:200]!r}")
    text = match[1]
    # Without use_global_device_ids a reduction with a channel names replicas, of which an SPMD
    # program has one, and spans every partition of them.
    if text == "{{0}}" and kind in ("all-reduce", "all-gather", "reduce-scatter"):
        across = "channel_id" in i.attributes and "use_global_device_ids" not in i.attributes
        text = "{}" if across else text
    return parse_groups(text, module.partitions)


@lru_cache(maxsize=1024)
def parse_groups(text: str, partitions: int) -> tuple[tuple[int, ...], ...]:
    """Return the groups that a `replica_groups` value spells; `{}` is one group of everyone.

    >>> parse_groups("[2,2]<=[2,2]T(1,0)", 4)
    ((0, 2), (1, 3))
    """
    if text == "{}":
        return (tuple(range(partitions)),)
    try:
        groups = _spelled(text, partitions)
    except (ValueError, KeyError, ZeroDivisionError):
        raise ValueError(f"unknown spelling of replica groups: {text[:200]!r}") from None
    members = [member for group in groups for member in group]
    if not groups or len(set(members)) < len(members) or max(members) >= partitions:
        raise ValueError(f"replica groups {text[:200]!r} do not name some of {partitions} devices")
    return groups


def _spelled(text: str, partitions: int) -> tuple[tuple[int, ...], ...]:
    """The groups of one of three spellings; ValueError and its like for none of them."""
    if _LISTS.fullmatch(text):
        found = re.findall(r"\{([\d,]+)\}", text)
        return tuple(tuple(map(int, group.split(","))) for group in found)
    if match := _IOTA.fullmatch(text):
        table = _iota(match, partitions).reshape(_integers(match[1]))
    elif match := _MESH.fullmatch(text):
        axes, device_ids, grouped = match.groups()
        table = _mesh_groups(axes, device_ids, grouped, partitions)
    else:
        raise ValueError(text)
    return tuple(map(tuple, table.tolist()))


def _listed(entry: re.Pattern, text: str) -> list[tuple[str, ...]]:
    """The groups of each entry of a list with commas; ValueError for an entry that is none."""
    matches = [entry.fullmatch(part) for part in filter(None, text.split(","))]
    if None in matches:
        raise ValueError(text)
    return [match.groups() for match in matches if match]


def _integers(text: str) -> list[int]:
    """The non-negative integers in a text, in order."""
    return [int(n) for n in re.findall(r"\d+", text)]


def _table(dims: list[int], partitions: int) -> np.ndarray:
    """Ids from 0 up in a table of these sizes; ValueError for more than there are partitions."""
    if prod(dims) > partitions:
        raise ValueError(dims)
    return np.arange(prod(dims)).reshape(dims)


def _iota(match: re.Match, partitions: int) -> np.ndarray:
    """Partitions in the order of an iota tile assignment, `[2,4]<=[4,2]T(1,0)`, flat."""
    order = _integers(match[3]) if match[3] else None
    return _table(_integers(match[2]), partitions).transpose(order).ravel()


def _device_order(text: str, partitions: int) -> np.ndarray:
    """Return device ids in mesh order: `[8]<=[2,4]T(1,0)`, `[2,4]T(1,0)`, or `[2,2]` and ids."""
    if match := _IOTA.search(text):
        return _iota(match, partitions)
    if match := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", text):
        order = _integers(match[2]) if match[2] else None
        return _table(_integers(match[1]), partitions).transpose(order).ravel()
    return np.array(_integers(text.split("]")[-1]))


def _mesh_groups(axes: str, device_ids: str | None, grouped: str, partitions: int) -> np.ndarray:
    """Return groups as rows, from axes "'a'=8,'b'=4" and the grouped ones "'a','b':(2)2".

    A part of an axis, `b:(2)2`, is the digit of size 2 with a product of 2 to its left.
    """
    sizes = {name: int(n) for name, n in _listed(_AXIS, axes)}
    wanted = [
        (name, int(left), int(size)) if size else (name, 1, sizes[name])
        for name, left, size in _listed(_PART, grouped)
    ]
    digits = []
    for name, total in sizes.items():
        cuts = {1, total} | {cut for n, left, s in wanted if n == name for cut in (left, left * s)}
        cuts = sorted(cuts) if total > 1 else [1, 1]
        digits += [(name, left, right // left) for left, right in pairwise(cuts)]
    dims = [size for *_, size in digits]
    ids = _table(dims, partitions)
    if device_ids is not None:
        ids = _device_order(device_ids, partitions)
    inner = [digits.index(part) for part in wanted]
    outer = [d for d in range(len(digits)) if d not in inner]
    members = prod(size for *_, size in wanted)
    return ids.reshape(dims).transpose(outer + inner).reshape(-1, members)


def axes_of(collective: Collective, axis_sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which a collective moves data, outermost first.

    `axis_sizes` is the mesh, outermost axis first; partition ids count row-major over it. An axis
    is named if it varies inside any group or pair; `spans_whole_axes` tells whether that is all.
    ValueError when the mesh has too few devices for the groups.
    """
    varies = np.any(_varies(collective, axis_sizes), axis=0).tolist()
    return tuple(name for name, moves in zip(axis_sizes, varies, strict=True) if moves)


def spans_whole_axes(collective: Collective, axis_sizes: Mapping[str, int]) -> bool:
    """Return whether each group is exactly the product of `axes_of`.

    For a permute: whether every pair moves along one and the same axis.
    """
    varies = _varies(collective, axis_sizes)
    if collective.pairs:
        return int(varies.any(axis=0).sum()) == 1
    whole = prod(axis_sizes[name] for name in axes_of(collective, axis_sizes))
    return all(len(group) == whole for group in collective.groups)


def _varies(collective: Collective, axis_sizes: Mapping[str, int]) -> np.ndarray:
    """Return, for each group (row) and axis (column), whether the group's members differ there."""
    sizes = tuple(axis_sizes.values())
    groups = collective.groups or collective.pairs
    longest, highest = max(map(len, groups)), max(map(max, groups))
    if highest >= prod(sizes):
        raise ValueError(
            f"{collective.name} names partition {highest}, but the mesh {dict(axis_sizes)} "
            f"has {prod(sizes)} devices; give the mesh the program was compiled for"
        )
    padded = np.array([group + group[:1] * (longest - len(group)) for group in groups])
    return np.stack([(at != at[:, :1]).any(axis=1) for at in np.unravel_index(padded, sizes)], 1)
