"""The misuses of partial sums that are certain, kept as they are met."""

from __future__ import annotations

from collections.abc import Sequence

from jaxpar.hlo.fault import NONLINEAR, PRODUCTS, Fault
from jaxpar.hlo.parse import Computation, Instruction, Module
from jaxpar.hlo.transfer import LINEAR
from jaxpar.hlo.values import Partial, Value

_INDIFFERENT = frozenset((*LINEAR - {"add", "subtract"}, "broadcast", "tuple"))


class Misuses:
    """Faults of a module, each once.

    Attributes:
        found: (kind, axis, name of the instruction that made the sum) -> the fault.
        exchanged: mesh axes along which devices hand arrays on to each other: parts of a partial
            sum may be taken and summed around a ring there.
    """

    def __init__(self, module: Module, exchanged: frozenset[str]):
        self.module, self.exchanged = module, exchanged
        self.found: dict[tuple[str, str, str], Fault] = {}

    def of_reduction(self, i: Instruction, value: Value, axes: frozenset[str]) -> None:
        """Tell of a sum over devices of what is summed already, or is the same on all of them."""
        left = {p.axis: p for p in value.partial}
        alike = axes - set(left) - value.varies
        for axis in sorted(alike & value.reduced):
            self._tell("summed twice", axis, (), i, i)
        sums = value.sums()
        if alike == axes and set(sums) - axes:
            axis = min(set(sums) - axes)
            p = sums[axis]
            self._tell("wrong group", axis, p.dims, self._at(p), i)

    def of_operation(self, i: Instruction, values: Sequence[Value]) -> None:
        """Tell of a partial sum among the operands that this operation must not be given."""
        if i.opcode in _INDIFFERENT:
            return
        for n, value in enumerate(values):
            others = [v for k, v in enumerate(values) if k != n]
            for axis, p in value.sums().items():
                whole = [v for v in others if axis in v.reduced and axis not in v.varies]
                own = axis not in self.exchanged and _takes_own(i, values, n, axis)
                product = i.opcode in PRODUCTS and _varied(others, axis)
                if own or product or i.opcode in NONLINEAR:
                    self._tell("not reduced", axis, p.dims, self._at(p), i)
                elif i.opcode in ("add", "subtract", "concatenate") and whole:
                    self._tell("added too early", axis, p.dims, self._at(p), i)

    def of_result(self, entry: Computation, number: int, value: Value) -> None:
        """Tell of a partial sum among the results of the program."""
        for axis, p in value.sums().items():
            used = entry.by_name[entry.root.operands[number]]
            self._tell("handed out", axis, p.dims, self._at(p), used, number)

    def _at(self, partial: Partial) -> Instruction:
        """The instruction that made a partial result."""
        computation, name = partial.at
        return self.module.computations[computation].by_name[name]

    def _tell(self, kind: str, axis: str, dims, made: Instruction, used: Instruction, result=-1):
        """Keep a fault, once for each instruction that made it."""
        key = (kind, axis, made.name)
        self.found.setdefault(key, Fault(kind, axis, dims, made, used, result))


def _takes_own(i: Instruction, values: Sequence[Value], number: int, axis: str) -> bool:
    """Whether each device along an axis takes its own elements of an operand."""
    if i.opcode == "dynamic-slice":
        return number == 0 and any(axis in v.own for v in values[1:])
    zero = i.opcode == "select" and any(v.is_zero for v in values[1:])
    return zero and number > 0 and axis in values[0].own


def _varied(others: Sequence[Value], axis: str) -> bool:
    """Whether what a partial sum is multiplied with is sharded over its axis, or a sum too."""
    return any(axis in v.surely_sharded or axis in v.sums() for v in others)
