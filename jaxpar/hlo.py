"""Read a compiled program's text as records: instructions, loop counts and every collective.

`parse(compiled.as_text())` gives a `Module`; `collectives` lists what crosses devices, with its
groups, bytes, number of executions and source line. Text in, frozen records out: no jax, no
device. A spelling that is not understood raises ValueError rather than being left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from math import prod

import numpy as np

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip

Shape = tuple[str, tuple[int, ...]]

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALL = re.compile(r"(\w+)=(?:\{(%[^}]*)\}|%([\w.\-]+))")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")
_TABLE_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_PAIRS = re.compile(r'source_target_pairs="?(\{\{[\d,{}]*\}\}|\{\})')
_GROUPS = re.compile(r"replica_groups=(\{\}|\{\{.*?\}\}|\[.*?\]<=\S+|mesh\[.*? \{.*?\})(?:,|$)")
_IOTA = re.compile(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"mesh\[(.*?)\](?:, device_ids=\((.*)\))? \{(.*)\}")


@dataclass(frozen=True)
class Frame:
    """One line of the user's traceback at the moment the operation was traced."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; `arguments` and `attributes` are the text as it was printed."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # the leaves, when the result is a tuple
    operands: tuple[str, ...]
    arguments: str  # between the parentheses: operand names, a literal, a parameter number
    attributes: str
    calls: tuple[tuple[str, str], ...]  # (role, computation), such as ("body", "region_0.1")
    op_name: str
    frame_id: int  # 0 when the compiler kept none
    frames: tuple[Frame, ...]  # innermost first
    is_root: bool


@dataclass(frozen=True)
class Computation:
    """A named list of instructions in the order they were scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions, by name."""
        return {i.name: i for i in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])


@dataclass(frozen=True)
class Module:
    """A whole compiled program; `entry` names the computation that the device starts with."""

    computations: Mapping[str, Computation]
    entry: str
    partitions: int


@dataclass(frozen=True)
class Times:
    """Runs in one execution of the program; if not exact, a loop or branch was counted as one."""

    times: int
    exact: bool


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
    executions: int
    exact: bool
    is_async: bool
    op_name: str
    frames: tuple[Frame, ...]
    borrowed: bool
    operands: tuple[str, ...]
    computation: str


def parse(text: str) -> Module:
    """Return the module that `compiled.as_text()` describes; ValueError if there is no entry."""
    tables: dict[str, dict[int, str | dict[str, int]]] = {}
    frames: dict[int, tuple[Frame, ...]] = {0: ()}
    bodies: dict[str, list[Instruction]] = {}
    entry = None
    table = body = None
    for line in text.splitlines():
        if body is not None:
            if line.startswith("}"):
                body = None
            elif match := _INSTRUCTION.match(line):
                body.append(_instruction(match, tables, frames))
            elif line.lstrip().startswith(("%", "ROOT ")):
                raise ValueError(f"not understood: {line.strip()[:200]!r}")
        elif match := _COMPUTATION.match(line):
            body = bodies[match[2]] = []
            entry = match[2] if match[1] else entry
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and (match := _TABLE_ROW.match(line)):
            fields = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[3] or "")}
            table[int(match[1])] = fields or match[2]
    if entry is None:
        raise ValueError("no ENTRY computation: pass the text of a compiled module, as_text()")
    header = text[: text.find("\n")]
    count = [int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)]
    return Module({n: Computation(n, tuple(b)) for n, b in bodies.items()}, entry, prod(count))


def _instruction(match: re.Match, tables: dict, frames: dict) -> Instruction:
    root, name, shape, opcode, rest = match.groups()
    end = rest.find(")")
    while rest.count("(", 0, end) > rest.count(")", 0, end):  # operands printed with tuple types
        end = rest.find(")", end + 1)
    arguments, attributes = rest[:end], rest[end + 1 :].lstrip(", ")
    op_name, frame = _OP_NAME.search(attributes), _FRAME_ID.search(attributes)
    frame_id = int(frame[1]) if frame else 0
    if frame_id not in frames:
        frames[frame_id] = _frames(frame_id, tables)
    called = _CALL.finditer(attributes) if "=%" in attributes or "={%" in attributes else ()
    return Instruction(
        name=name, opcode=opcode, shapes=_shapes(shape),
        operands=tuple(_NAME.findall(arguments)) if "%" in arguments else (),
        arguments=arguments, attributes=attributes,
        calls=tuple((c[1], name) for c in called for name in re.findall(r"[\w.\-]+", c[2] or c[3])),
        op_name=op_name[1] if op_name else "", frame_id=frame_id, frames=frames[frame_id],
        is_root=root is not None,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        (dtype, tuple(int(n.strip(" <=")) for n in dims.split(",")) if dims else ())
        for dtype, dims in _SHAPE.findall(text)
    )


def _frames(frame_id: int, tables: dict) -> tuple[Frame, ...]:
    found = []
    while frame_id in tables.get("StackFrames", {}):
        frame = tables["StackFrames"][frame_id]
        at = tables["FileLocations"][frame["file_location_id"]]
        function = tables["FunctionNames"][at["function_name_id"]]
        found.append(Frame(tables["FileNames"][at["file_name_id"]], at["line"], function))
        # The printer adds one to a parent's id, so a frame without a parent shows 1.
        frame_id = frame["parent_frame_id"] - 1
    return tuple(found)


def executions(module: Module) -> dict[str, Times]:
    """Return how often each computation that control reaches runs; others (reducers) are absent.

    A branch of a conditional counts as run once each time, and is not exact.
    """
    runs = {module.entry: Times(1, True)}
    for computation in reversed(module.computations.values()):  # callees are printed first
        caller = runs.get(computation.name)
        for i in computation.instructions if caller else ():
            if i.opcode in ("while", "call", "fusion", "conditional", "async-start"):
                n, sure = trip_count(module, computation, i)
                for role, name in i.calls:
                    times = caller.times * (n + (role == "condition"))
                    so_far = runs.get(name, Times(0, True))
                    exact = sure and caller.exact and so_far.exact
                    runs[name] = Times(so_far.times + times, exact)
    return runs


def trip_count(module: Module, computation: Computation, i: Instruction) -> tuple[int, bool]:
    """Return how often one run of an instruction runs what it calls, and whether that is sure.

    Once, unless it is a `while`: then the compiler's own count where it gives one; else the bound
    of a condition `k < bound`, when k is seen to start at 0 and grow by 1; else 1, not sure.
    """
    if i.opcode != "while":
        return 1, i.opcode != "conditional"
    if known := _TRIP_COUNT.search(i.attributes):
        return int(known[1]), True
    called = {role: module.computations[name] for role, name in i.calls}
    condition, root = called["condition"], called["body"].root
    test, where = _behind(module, condition, condition.root.name)
    reads = [r for r in condition.instructions if r.opcode == "get-tuple-element"]
    init = computation.by_name[i.operands[0]]
    counts = test.opcode == "compare" and "direction=LT" in test.attributes and len(reads) == 1
    if counts and init.opcode == root.opcode == "tuple":
        bound = _constants(where, test.operands[1:])
        k = int(re.search(r"index=(\d+)", reads[0].attributes)[1])
        start, _ = _behind(module, computation, init.operands[k])
        step, inside = _behind(module, called["body"], root.operands[k])
        by_one = step.opcode == "add" and _constants(inside, step.operands) == [1]
        if bound and by_one and start.opcode == "constant" and start.arguments == "0":
            return bound[0], True
    return 1, False


def _behind(module: Module, where: Computation, name: str) -> tuple[Instruction, Computation]:
    """Return what computes a value, through copies and fusions, and the computation it is in."""
    i = where.by_name[name]
    while i.opcode in ("copy", "bitcast", "fusion"):
        if i.opcode == "fusion":
            where = module.computations[i.calls[0][1]]
        i = where.root if i.opcode == "fusion" else where.by_name[i.operands[0]]
    return i, where


def _constants(where: Computation, names: tuple[str, ...]) -> list[int]:
    found = [where.by_name[name] for name in names]
    literals = [i.arguments for i in found if i.opcode == "constant"]
    return [int(literal) for literal in literals if literal.lstrip("-").isdigit()]


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
        # `is_sync` is the scheduler's word that nothing lies between this start and its done.
        is_async=starts and '"is_sync":true' not in i.attributes,
        op_name=source.op_name, frames=source.frames, borrowed=source is not i,
        operands=i.operands, computation=computation.name,
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


def bytes_of(shape: Shape) -> int:
    """Return the bytes of one array; types under 8 bits are packed, as they are on the wire.

    >>> bytes_of(("bf16", (4, 2))), bytes_of(("s4", (3,))), bytes_of(("pred", ()))
    (16, 2, 1)
    """
    dtype, dims = shape
    if dtype in ("token", "opaque"):
        return 0
    bits = re.match(r"[a-z]+(\d+)", "s8" if dtype == "pred" else dtype)
    if bits is None:
        raise ValueError(f"element type {dtype!r} has no size in its name")
    return -(-prod(dims) * int(bits[1]) // 8)


def _groups(module: Module, i: Instruction, kind: str) -> tuple[tuple[int, ...], ...]:
    match = _GROUPS.search(i.attributes)
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
    if text.startswith("{"):
        found = re.findall(r"\{([\d,]+)\}", text)
        return tuple(tuple(map(int, group.split(","))) for group in found)
    if match := _IOTA.fullmatch(text):
        table = _iota(match).reshape(_integers(match[1]))
    elif match := _MESH.fullmatch(text):
        table = _mesh_groups(*match.groups())
    else:
        raise ValueError(f"unknown spelling of replica groups: {text!r}")
    return tuple(map(tuple, table.tolist()))


def _integers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _iota(match: re.Match) -> np.ndarray:
    dims = _integers(match[2])
    order = _integers(match[3]) if match[3] else None
    return np.arange(prod(dims)).reshape(dims).transpose(order).ravel()


def _device_order(text: str) -> np.ndarray:
    """Return device ids in mesh order: `[8]<=[2,4]T(1,0)`, `[2,4]T(1,0)`, or `[2,2]` and the ids."""
    if match := _IOTA.search(text):
        return _iota(match)
    if match := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$", text):
        dims = _integers(match[1])
        order = _integers(match[2]) if match[2] else None
        return np.arange(prod(dims)).reshape(dims).transpose(order).ravel()
    return np.array(_integers(text.split("]")[-1]))


def _mesh_groups(axes: str, device_ids: str | None, grouped: str) -> np.ndarray:
    """Return groups as rows, from axes "'a'=8,'b'=4" and the grouped ones "'a','b':(2)2".

    A part of an axis, `b:(2)2`, is the digit of size 2 with a product of 2 to its left.
    """
    sizes = {name: int(n) for name, n in re.findall(r"([^,='\"]+)['\"]?=(\d+)", axes)}
    wanted = [
        (name, int(left), int(size)) if size else (name, 1, sizes[name])
        for name, left, size in re.findall(r"([^,:'\"]+)['\"]?(?::\((\d+)\)(\d+))?(?:,|$)", grouped)
    ]
    digits = []
    for name, total in sizes.items():
        cuts = {1, total} | {cut for n, left, s in wanted if n == name for cut in (left, left * s)}
        cuts = sorted(cuts) if total > 1 else [1, 1]
        digits += [(name, left, right // left) for left, right in pairwise(cuts)]
    dims = [size for *_, size in digits]
    ids = np.arange(prod(dims))
    if device_ids is not None:
        ids = _device_order(device_ids)
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
    varies = _varies(collective, axis_sizes).any(axis=0)
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
            f"{collective.name} speaks of partition {highest}, but the mesh {dict(axis_sizes)} "
            f"has {prod(sizes)} devices; give the mesh the program was compiled for"
        )
    padded = np.array([group + group[:1] * (longest - len(group)) for group in groups])
    return np.stack([(at != at[:, :1]).any(axis=1) for at in np.unravel_index(padded, sizes)], 1)
