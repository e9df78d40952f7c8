"""What a collective is made of: XLA combines several into one.

A part is one operand of many, or a piece of one that several arrays were put into end to end. Each
has its own bytes, and the names of the operations that asked for it, as far as the module still
tells: a combined collective's own name lists those of its parts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.flow import Flow, Node, moves
from jaxpar.hlo.frames import Frame
from jaxpar.hlo.parse import Instruction, bytes_of

_CALLED = "jit("
"""What whole names of operations begin with; those within a call that is not inlined do not."""

_MOST_NAMED = 2000

_COMBINED = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HANDED = ("fusion", "parameter", "bitcast", "copy", "reshape", "get-tuple-element", "slice")
_SLICE = re.compile(r"slice=\{\[(\d+):\d+\]\}")


@dataclass(frozen=True)
class Part:
    """One operand of a collective, or a piece of one.

    Attributes:
        collective: of which.
        number: of the operand.
        bytes_each: of the collective's payload, those of this part.
        dtype: of the operand.
        names: the operations that asked for it, likeliest first; of a combined collective those
            of all its parts may be among them.
        frames: where it was traced, innermost first.
        operand: the value that it takes.
        results: the values that it gives.
        reducer: what it does with the values of several devices, "add"; "" for nothing.
    """

    collective: Collective
    number: int
    bytes_each: int
    dtype: str
    names: tuple[str, ...]
    frames: tuple[Frame, ...]
    operand: Node
    results: tuple[Node, ...]
    reducer: str = ""


def parts_of(flow: Flow, one: Collective) -> tuple[Part, ...]:
    """The parts of a collective, in the order of its operands."""
    where = flow.module.computations[one.computation]
    i = where.by_name[one.name]
    single = len(one.operands) == 1 or one.kind not in _COMBINED or i.opcode == "send"
    operands = one.operands[:1] if single else one.operands
    sizes = [sum(map(bytes_of, where.by_name[name].shapes)) for name in operands]
    scale = one.bytes_each // sum(sizes) if sum(sizes) else 0
    reducers = [flow.module.computations[name].root.opcode for _, name in i.calls]
    reducer = reducers[0] if reducers else ""
    parts: list[Part] = []
    for number, (name, size) in enumerate(zip(operands, sizes, strict=True)):
        result = Node(one.computation, one.name, -1 if single else number)
        shapes = where.by_name[name].shapes
        dtype = shapes[0][0] if shapes else ""
        operand = Node(one.computation, name)
        for piece, share, results in _pieces(flow, one, operand, result):
            names, frames = _told(flow, one, piece, results, single and share == 1)
            each = round(size * scale * share)
            part = Part(one, number, each, dtype, names, frames, piece, results, reducer)
            parts.append(part)
    return tuple(parts)


def _pieces(
    flow: Flow, one: Collective, operand: Node, result: Node
) -> list[tuple[Node, Fraction, tuple[Node, ...]]]:
    """(value, share of the operand, values of the result) of each array put into an operand."""
    whole = [(operand, Fraction(1), (result,))]
    if one.kind != "all-reduce":
        return whole
    found = [n for n in flow.back(operand, _passes) if flow.instruction(n).opcode == "concatenate"]
    if len(found) != 1 or not all(len(n) == 1 for n in _sizes(flow, found[0])):
        return whole
    where = flow.module.computations[found[0].computation]
    i = where.by_name[found[0].name]
    slices: dict[int, list[Node]] = {}
    for node in flow.on(result, _passes):
        if match := _SLICE.search(flow.instruction(node).attributes):
            slices.setdefault(int(match[1]), []).append(node)
    sizes = [n for (n,) in _sizes(flow, found[0])]
    pieces, begin, total = [], 0, sum(sizes)
    if not total:
        return whole
    for name, size in zip(i.operands, sizes, strict=True):
        results = tuple(slices.get(begin, ())) or (result,)
        pieces.append((Node(where.name, name), Fraction(size, total), results))
        begin += size
    return pieces


def _sizes(flow: Flow, node: Node) -> list[tuple[int, ...]]:
    """The sizes of the operands of an instruction."""
    where = flow.module.computations[node.computation]
    shapes = [where.by_name[name].shapes for name in flow.instruction(node).operands]
    return [shape[0][1] if shape else () for shape in shapes]


def _passes(i: Instruction) -> bool:
    """Whether an instruction hands on arrays that were put end to end, or takes one out."""
    return i.opcode in _HANDED or i.opcode.endswith("-done")


def _told(
    flow: Flow, one: Collective, operand: Node, results: tuple[Node, ...], single: bool
) -> tuple[tuple[str, ...], tuple[Frame, ...]]:
    """(names, frames) of a part, likeliest first.

    Its own; else those of what takes it out of the tuple, of what made it, and of all parts.
    """
    listed = combined_names(one.op_name)
    if single and len(listed) == 1 and not one.borrowed:
        return (full_name(flow, one.computation, one.op_name),), one.frames
    taken = [flow.instruction(r) for r in results if r.name != one.name]
    for node in (n for r in results for n in _near(flow, r)):
        user = flow.instruction(node)
        if user.opcode == "get-tuple-element":
            taken.append(user)
    made = (flow.instruction(node) for node in flow.back(operand, moves))
    first = next((i for i in made if i.op_name), None)
    taken += [first] if first is not None else []
    named = [(i.op_name, i.frames) for i in taken if i.op_name]
    names = dict.fromkeys((*(name for name, _ in named), *listed))
    frames = next((frames for _, frames in named if frames), ())
    return tuple(full_name(flow, one.computation, n) for n in names if n), frames


def _near(flow: Flow, result: Node) -> Iterator[Node]:
    """The values next to a result: through its done."""
    for node in flow.uses(result):
        yield node
        if flow.instruction(node).opcode.endswith("-done"):
            yield from flow.uses(node)


def combined_names(op_name: str) -> tuple[str, ...]:
    """The names that XLA joined into one: a common beginning, and `(a:b:c)`.

    >>> combined_names("jit(f)/(jvp(x)/mul:jvp(y)/(dot:add))")
    ('jit(f)/jvp(x)/mul', 'jit(f)/jvp(y)/dot', 'jit(f)/jvp(y)/add')
    """
    if ":" not in op_name:
        return (op_name,)
    return tuple(dict.fromkeys(_spelled_out("", op_name)))[:_MOST_NAMED]


def _spelled_out(before: str, text: str) -> Iterator[str]:
    """Every name that a text with alternatives in brackets spells, after a beginning."""
    for choice in _split(text, ":"):
        at = _alternatives(choice)
        if at is None:
            yield before + choice
        else:
            begin, end = at
            yield from _spelled_out(before + choice[:begin], choice[begin + 1 : end])


def _alternatives(text: str) -> tuple[int, int] | None:
    """Where a bracket with alternatives opens and closes: one after a `/`, or at the beginning."""
    for begin, letter in enumerate(text):
        if letter == "(" and (begin == 0 or text[begin - 1] == "/"):
            depth = 0
            for end in range(begin, len(text)):
                depth += {"(": 1, ")": -1}.get(text[end], 0)
                if not depth:
                    return (begin, end) if ":" in text[begin:end] else None
            return None
    return None


def _split(text: str, by: str) -> list[str]:
    """A text split where no bracket is open."""
    found, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == by and not depth:
            found.append(text[begin:at])
            begin = at + 1
    return [*found, text[begin:]]


def full_name(flow: Flow, computation: str, name: str) -> str:
    """The whole name of an operation in a computation, that of the call that it is in before it."""
    seen = set()
    while not name.startswith(_CALLED) and computation not in seen:
        seen.add(computation)
        callers = flow.callers.get(computation, ())
        if not callers:
            break
        where, i, _, _ = callers[0]
        if i.opcode == "call" and i.op_name and name:
            name = f"{i.op_name}/{name}"
        computation = where.name
    return re.sub(r"//+", "/", name)
