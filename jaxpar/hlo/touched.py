"""Bytes of memory that a compiled program touches outside of products: what it reads and writes.

Every instruction reads its operands and writes its result, loops as often as they turn. A fusion
touches what its own instructions read of its operands: of one that it only slices, the slices; and
of one that it updates in place, what it writes. Products (of matrices, convolutions, fused
attention) and collectives are left out: their time is their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from jaxpar.hlo.executions import executions
from jaxpar.hlo.parse import Computation, Instruction, Module, bytes_of

_NOTHING = frozenset(
    "parameter constant tuple get-tuple-element bitcast while call conditional after-all "
    "opt-barrier partition-id replica-id async-start async-update async-done".split()
)
"""Operations that touch nothing themselves: they name memory, or others do the work."""

_FUSIONS = ("fusion", "fusion-start")
_PRODUCTS = ("dot", "convolution", "ragged-dot")
_LIBRARIES = ("cublas", "cudnn")
"""What the targets of custom calls that are products have in their names."""

_COLLECTIVES = ("all-", "reduce-scatter", "collective-", "ragged-all-", "send", "recv")
_SLICES = ("dynamic-slice", "slice", "gather")
_COPIES = ("copy", "transpose", "copy-start")


@dataclass(frozen=True)
class Touched:
    """Bytes read and written in one run of a program.

    Attributes:
        bytes: by all instructions but products and collectives.
        copied_bytes: those of them that only move data: copies and transposes.
    """

    bytes: Fraction
    copied_bytes: Fraction


def touched(module: Module) -> Touched:
    """The bytes that a program touches outside of products and collectives."""
    total, copied = Fraction(0), Fraction(0)
    fused = inside_fusions(module)
    for name, runs in executions(module).items():
        if name in fused:
            continue
        computation = module.computations[name]
        for i in computation.instructions:
            size = runs.times * touched_bytes(module, computation, i)
            total += size
            copied += size if _copies(module, i) else 0
    return Touched(total, copied)


def inside_fusions(module: Module) -> set[str]:
    """The computations that are the inside of a fusion, or of one instruction otherwise."""
    control = ("while", "call", "conditional", "async-start")
    return {
        name
        for computation in module.computations.values()
        for i in computation.instructions
        if i.opcode not in control
        for _, name in i.calls
    }


def touched_bytes(module: Module, computation: Computation, i: Instruction) -> int:
    """The bytes that one run of an instruction touches."""
    if i.opcode in _NOTHING or i.opcode.endswith(("-done", "-update")):
        return 0
    if is_product(module, i) or i.opcode.startswith(_COLLECTIVES):
        return 0
    if i.opcode in _FUSIONS:
        return _fusion_bytes(module.computations[i.calls[0][1]])
    result = sum(map(bytes_of, i.shapes))
    if i.opcode in _SLICES:
        return 2 * result
    operands = [computation.by_name[name] for name in i.operands]
    if i.opcode == "dynamic-update-slice":
        return 2 * sum(map(bytes_of, operands[1].shapes))
    if i.opcode == "copy-start":
        return 2 * sum(map(bytes_of, operands[0].shapes))
    return result + sum(bytes_of(shape) for one in operands for shape in one.shapes)


def is_product(module: Module, i: Instruction) -> bool:
    """Whether an instruction is a product, or a fusion around one."""
    todo, seen = [i], set()
    while todo:
        one = todo.pop()
        if one.opcode in _FUSIONS:
            name = one.calls[0][1]
            todo += () if name in seen else module.computations[name].instructions
            seen.add(name)
        elif one.opcode in ("custom-call", "custom-call-start"):
            if any(name in one.attributes for name in _LIBRARIES):
                return True
        elif one.opcode in _PRODUCTS:
            return True
    return False


def _copies(module: Module, i: Instruction) -> bool:
    """Whether an instruction only moves data: a copy or a transpose, fused or not."""
    if i.opcode not in _FUSIONS:
        return i.opcode in _COPIES
    inside = module.computations[i.calls[0][1]].instructions
    rest = {one.opcode for one in inside} - {"parameter", "bitcast", "tuple", "get-tuple-element"}
    return bool(rest) and rest <= {*_COPIES, "convert"} and bool(rest & set(_COPIES))


def _fusion_bytes(body: Computation) -> int:
    """The bytes that a fusion reads of its operands and writes of its results."""
    users: dict[str, list[Instruction]] = {}
    for i in body.instructions:
        for name in i.operands:
            users.setdefault(name, []).append(i)
    parameters = [i for i in body.instructions if i.opcode == "parameter"]
    read = sum(_read_bytes(i, users) for i in parameters)
    return read + sum(_written_bytes(body, i) for i in _results(body))


def _read_bytes(source: Instruction, users) -> int:
    """The bytes of one operand that a fusion reads."""
    whole = sum(map(bytes_of, source.shapes))
    read, todo = 0, [source]
    while todo:
        one = todo.pop()
        for user in users.get(one.name, ()):
            if user.opcode in _SLICES and user.operands[0] == one.name:
                read += sum(map(bytes_of, user.shapes))
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == one.name:
                pass  # updated in place
            elif user.opcode == "bitcast":
                todo.append(user)
            else:
                return whole
    return min(read, whole)


def _results(body: Computation) -> Iterator[Instruction]:
    """The instructions that make the results of a fusion, behind tuples and bitcasts."""
    todo, seen = [body.root], set()
    while todo:
        i = todo.pop()
        if i.name in seen:
            continue
        seen.add(i.name)
        if i.opcode in ("tuple", "bitcast"):
            todo += [body.by_name[name] for name in i.operands]
        else:
            yield i


def _written_bytes(body: Computation, i: Instruction) -> int:
    """The bytes that a fusion writes of one result: of what it updates in place, the update."""
    if i.opcode == "dynamic-update-slice":
        return sum(map(bytes_of, body.by_name[i.operands[1]].shapes))
    return sum(map(bytes_of, i.shapes))
