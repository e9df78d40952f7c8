"""Read a compiled program's text as records: computations, instructions and what they call.

`parse(compiled.as_text())` gives a `Module`; `executions` counts its loops. Text in, frozen records
out: no jax, no device. A spelling that is not understood raises ValueError rather than being left
out, and so does damage: in a Module every operand is defined above its use, every computation above
its callers, so that whoever walks either one comes to an end.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from jaxpar.core.errors import one_line
from jaxpar.hlo.frames import Frame, Tables, table_at

Shape = tuple[str, tuple[int, ...]]

MOST_PARTITIONS = 1 << 20
"""More devices than there are anywhere: a header that says so is damaged."""

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_COUNTS = re.compile(r"\b(?:num_partitions|replica_count)=(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](?:\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*[^*]*\*/")
_BRACKETS = re.compile(r"[()]")
_NAME = re.compile(r"%([\w.\-]+(?:#\d{1,9})?)")
_CALL = re.compile(r"(?<![\w\-])(\w+)=(?:\{(%[\w.\-%,\s]*)\}|%([\w.\-]+))")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.?)*+"?')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME_ID = re.compile(r"stack_frame_id=(\d+)")

_CALLS = {
    "fusion": ["calls"],
    "async-start": ["calls"],
    "call": ["to_apply"],
    "while": ["body", "condition"],
}
"""What an instruction that passes control on must call, its roles in alphabetical order."""

_READS = ("while", "conditional", "copy", "bitcast", "get-tuple-element")
"""Those of which we ask the first operand."""


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
    """Return the module that `compiled.as_text()` describes.

    Raises:
        ValueError: for a text that is no compiled module, or that is damaged; it names the line.
    """
    if not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} is no HLO text: pass compiled.as_text()")
    reader = _Reader()
    line, number = "", 0
    try:
        for line in text.split("\n"):
            number += 1
            reader.read(line)
        return reader.module()
    except ValueError as error:
        raise ValueError(
            one_line(
                f"line {number} of the HLO text, {line.strip()[:100]!r}: {error}; pass the whole "
                "text of a compiled module, compiled.as_text()"
            )
        ) from None


class _Reader:
    """The place reached in a text, and what was read so far: a line at a time, as files are."""

    def __init__(self):
        self.partitions = 0
        self.tables = Tables()
        self.table: str | None = None
        self.frames: dict[int, tuple[Frame, ...]] = {0: ()}
        self.computations: dict[str, Computation] = {}
        self.entry: str | None = None
        self.name: str | None = None  # of the computation that is being read
        self.body: dict[str, Instruction] = {}

    def read(self, line: str) -> None:
        """Take the next line; ValueError for one that cannot stand here."""
        if self.name is not None:
            if line.startswith("}"):
                self._close(self.name)
            elif match := _INSTRUCTION.match(line):
                self._add(match)
            elif line.strip():
                raise ValueError("not understood as an instruction")
        elif not self.partitions:
            self.partitions = _partitions(line)
        elif (match := _COMPUTATION.match(line)) and line.endswith("{") and ") -> " in line:
            self._open(*match.groups())
        else:
            self.table = table_at(line, self.table)
            if line and self.table is None:
                raise ValueError("not understood as the beginning of a computation")
            if self.table and line and line != self.table:
                self.tables.read(self.table, line)

    def module(self) -> Module:
        """The module, all lines read; ValueError where some are missing."""
        if self.name is not None:
            raise ValueError(f"the text ends inside of computation {self.name}")
        if self.entry is None:
            raise ValueError("no ENTRY computation")
        return Module(self.computations, self.entry, self.partitions)

    def _open(self, entry: str | None, name: str) -> None:
        """Begin a computation."""
        if name in self.computations or (entry and self.entry):
            raise ValueError(f"computation {name} is there twice, or a second ENTRY")
        self.name, self.body = name, {}
        self.entry = name if entry else self.entry

    def _close(self, name: str) -> None:
        """End a computation; without a ROOT, its last instruction is one."""
        if not self.body or [i.is_root for i in self.body.values()].count(True) > 1:
            raise ValueError(f"computation {name} is empty, or has two ROOTs")
        self.computations[name] = Computation(name, tuple(self.body.values()))
        self.name = None

    def _add(self, match: re.Match) -> None:
        """Add an instruction whose operands and callees are all known by now."""
        i = self._instruction(match)
        if i.name in self.body:
            raise ValueError(f"instruction {i.name} is there twice")
        for name in i.operands:
            if name not in self.body:
                self._add_element(name)
        for role, name in i.calls:
            if name not in self.computations:
                raise ValueError(f"{role}={name} names no computation above")
        must = _CALLS.get(i.opcode)
        if must and sorted(role for role, _ in i.calls) != must:
            raise ValueError(f"{i.opcode} has {' and '.join(must)}, once each")
        if not i.calls and i.opcode == "conditional":
            raise ValueError("conditional is without branches")
        if not i.operands and i.opcode in _READS:
            raise ValueError(f"{i.opcode} is without an operand")
        self.body[i.name] = i

    def _add_element(self, name: str) -> None:
        """Add what takes an element of a tuple, where a text of JAX 0.11 says only `%tuple#3`."""
        whole, _, index = name.partition("#")
        if whole not in self.body or not index:
            raise ValueError(f"operand {name} is not defined above")
        shapes = self.body[whole].shapes
        if int(index) >= len(shapes):
            raise ValueError(f"{name}: no such element in the {len(shapes)} of {whole}")
        self.body[name] = Instruction(
            name=name, opcode="get-tuple-element", shapes=(shapes[int(index)],), operands=(whole,),
            arguments=f"%{whole}", attributes=f"index={int(index)}", calls=(), op_name="",
            frame_id=0, frames=(), is_root=False,
        )  # fmt: skip

    def _instruction(self, match: re.Match) -> Instruction:
        """The Instruction of a matched line; the stack frames that it names are read with it."""
        root, name, shape, opcode, rest = match.groups()
        end = _closing(rest)
        arguments, attributes = rest[:end], rest[end + 1 :].lstrip(", ")
        # What a person called something may look like an attribute.
        bare = _QUOTED.sub('""', attributes)
        op_name, frame = _OP_NAME.search(attributes), _FRAME_ID.search(bare)
        frame_id = int(frame[1]) if frame else 0
        if frame_id not in self.frames:
            self.frames[frame_id] = self.tables.frames(frame_id)
        called = _CALL.finditer(bare) if "=%" in bare or "={%" in bare else ()
        return Instruction(
            name=name, opcode=opcode, shapes=_shapes(shape),
            operands=tuple(_NAME.findall(arguments)) if "%" in arguments else (),
            arguments=arguments, attributes=attributes,
            calls=tuple((c[1], n) for c in called for n in _NAME.findall(c[2] or f"%{c[3]}")),
            op_name=op_name[1] if op_name else "", frame_id=frame_id, frames=self.frames[frame_id],
            is_root=root is not None,
        )  # fmt: skip


def _partitions(line: str) -> int:
    """How many devices a module's first line is for."""
    if not line.startswith("HloModule "):
        raise ValueError("a compiled module's text begins with HloModule")
    partitions = prod(int(n) for n in _COUNTS.findall(line))
    if not 0 < partitions <= MOST_PARTITIONS:
        raise ValueError(f"{partitions} partitions, and there can be 1 to {MOST_PARTITIONS}")
    return partitions


def _closing(text: str) -> int:
    """Where the bracket is that closes one that stands before the text; ValueError for none."""
    open_ones = 1
    for bracket in _BRACKETS.finditer(text):
        open_ones += 1 if bracket[0] == "(" else -1
        if not open_ones:
            return bracket.start()
    raise ValueError("a list of operands that does not end")


@lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of an HLO type, a tuple's in order, as (dtype, sizes)."""
    text = _COMMENT.sub("", text)
    if _ARRAY.sub("", text).strip("(), "):
        raise ValueError(f"{text[:100]!r} is no type")
    return tuple(
        (dtype, tuple(int(n.strip(" <=")) for n in dims.split(",")) if dims else ())
        for dtype, dims in _ARRAY.findall(text)
    )


def bytes_of(shape: Shape) -> int:
    """Return the bytes of one array; types under 8 bits are packed, as they are when sent.

    >>> bytes_of(("bf16", (4, 2))), bytes_of(("s4", (3,))), bytes_of(("pred", ()))
    (16, 2, 1)
    """
    dtype, dims = shape
    if dtype in ("token", "opaque"):
        return 0
    bits = re.match(r"[a-z]+(\d+)", "s8" if dtype == "pred" else dtype)
    if bits is None or bits[1] not in ("1", "2", "4", "8", "16", "32", "64", "128"):
        raise ValueError(f"element type {dtype[:40]!r} has no size in its name")
    return -(-prod(dims) * int(bits[1]) // 8)
