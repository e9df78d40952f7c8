"""Read a compiled program's text as records: computations, instructions and how often each runs.

`parse(compiled.as_text())` gives a `Module`; `executions` counts its loops. Text in, frozen records
out: no jax, no device. A spelling that is not understood raises ValueError rather than being left
out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

Shape = tuple[str, tuple[int, ...]]


_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)")


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")


_SHAPE = re.compile(r"([a-z]\w*)\[([^\]]*)\]")


_NAME = re.compile(r"%([\w.\-]+)")


_CALL = re.compile(r"(\w+)=(?:\{(%[^}]*)\}|%([\w.\-]+))")


_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")


_TABLE_ROW = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')


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


def parse(text: str) -> Module:
    """Return the module that `compiled.as_text()` describes; ValueError if there is no entry."""
    tables = _tables(text)
    frames: dict[int, tuple[Frame, ...]] = {0: ()}
    bodies: dict[str, list[Instruction]] = {}
    entry = None
    body = None
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
    if entry is None:
        raise ValueError("no ENTRY computation: pass the text of a compiled module, as_text()")
    header = text[: text.find("\n")]
    count = [int(n) for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)]
    return Module({n: Computation(n, tuple(b)) for n, b in bodies.items()}, entry, prod(count))


def frames_of(text: str, frame_id: int) -> tuple[Frame, ...]:
    """Return the lines, innermost first, that a module's text knows by this number."""
    return _frames(frame_id, _tables(text))


def _tables(text: str) -> dict[str, dict[int, str | dict[str, int]]]:
    """Read the tables of files, functions and frames, which stand before the computations."""
    tables: dict[str, dict[int, str | dict[str, int]]] = {}
    table = None
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and (match := _TABLE_ROW.match(line)):
            fields = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[3] or "")}
            table[int(match[1])] = fields or match[2]
        elif line.startswith(("%", "ENTRY ")):
            break
    return tables


def _instruction(match: re.Match, tables: dict, frames: dict) -> Instruction:
    """The Instruction of a matched line; `frames` is filled with the stack frames that are read."""
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
    """The arrays of an HLO type, a tuple's in order, as (dtype, sizes)."""
    return tuple(
        (dtype, tuple(int(n.strip(" <=")) for n in dims.split(",")) if dims else ())
        for dtype, dims in _SHAPE.findall(text)
    )


def _frames(frame_id: int, tables: dict) -> tuple[Frame, ...]:
    """The user's traceback with this id, innermost frame first; empty for an unknown id."""
    found = []
    while frame_id in tables.get("StackFrames", {}):
        frame = tables["StackFrames"][frame_id]
        at = tables["FileLocations"][frame["file_location_id"]]
        function = tables["FunctionNames"][at["function_name_id"]]
        found.append(Frame(tables["FileNames"][at["file_name_id"]], at["line"], function))
        # The printer adds one to a parent's id, so a frame without a parent shows 1.
        frame_id = frame["parent_frame_id"] - 1
    return tuple(found)


def bytes_of(shape: Shape) -> int:
    """Return the bytes of one array; types under 8 bits are packed, as they are when sent.

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
