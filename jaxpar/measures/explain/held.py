"""What a value in a program's memory is: a weight, a gradient, a saved activation, a temporary."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from jaxpar.core.scopes import weight_in
from jaxpar.hlo.buffers import Allocation, Buffer
from jaxpar.hlo.flow import Flow, Node, moves
from jaxpar.hlo.parse import Instruction, Module
from jaxpar.measures.explain.asked import Ways, parameter_of
from jaxpar.measures.explain.meaning import phase_of_name
from jaxpar.measures.explain.places import BATCH, MODEL, OPTIMIZER, OTHER, PARAMETERS, Place, Places
from jaxpar.measures.explain.record import BACKWARD, FORWARD

GRADIENTS, SAVED, GATHERED, TEMPORARIES = (
    "gradients",
    "saved_activations",
    "gathered_weights",
    "temporaries",
)
PARTS = (PARAMETERS, OPTIMIZER, MODEL, BATCH, GATHERED, GRADIENTS, SAVED, TEMPORARIES)
"""What memory is divided into; what several values share counts for the first of theirs."""

_ELEMENT = re.compile(r"\{(\d+)")
_LOSS = ("jvp(", "transpose(")


class Held:
    """Tells what the values of a finished module are."""

    def __init__(self, module: Module, places: Places, schedule: Sequence[str]):
        self.flow, self.places = Flow(module), places
        self.ways = Ways(self.flow, places)
        self._where = {i.name: c.name for c in module.computations.values()
                       for i in c.instructions}  # fmt: skip
        self._backward = [
            step
            for step, name in enumerate(schedule)
            if (i := self.instruction(name)) and phase_of_name(i.op_name)[0] == BACKWARD
        ]
        self._known: dict[Buffer, tuple[int, str]] = {}

    def instruction(self, name: str) -> Instruction | None:
        """The instruction of a name; None for one that the module's text does not have."""
        computation = self._where.get(name)
        return self.flow.module.computations[computation].by_name[name] if computation else None

    def part(self, buffer: Buffer) -> int:
        """The number in PARTS of what a value is."""
        return self._told(buffer)[0]

    def path(self, buffer: Buffer) -> str:
        """The parameter that a value is, or is of; "" for none."""
        return self._told(buffer)[1]

    def _told(self, buffer: Buffer) -> tuple[int, str]:
        """(number in PARTS, path of a parameter) of a value."""
        if buffer not in self._known:
            part, path = self._what(buffer)
            self._known[buffer] = PARTS.index(part), path
        return self._known[buffer]

    def _what(self, buffer: Buffer) -> tuple[str, str]:
        """(part, path of a parameter) of a value."""
        i = self.instruction(buffer.name)
        node = self.node(buffer)
        if i is None or node is None or i.opcode in ("custom-call", "tuple") and _is_inner(buffer):
            return TEMPORARIES, ""
        if path := self._weight(node):
            return GATHERED, path
        phase, _ = phase_of_name(i.op_name)
        results = self.ways.results(node)
        groups = {place.group for place in results}
        is_new = groups & {PARAMETERS, OPTIMIZER} and not groups & {MODEL, OTHER}
        if is_new and phase != FORWARD:
            is_state = phase not in (FORWARD, BACKWARD) and "while" not in i.op_name
            return (TEMPORARIES if is_state else GRADIENTS), parameter_of(results)
        if phase != BACKWARD and (phase == FORWARD or not groups) and self._spans_backward(buffer):
            return SAVED, ""
        return TEMPORARIES, ""

    def node(self, buffer: Buffer) -> Node | None:
        """The value in the module that a buffer is of."""
        computation = self._where.get(buffer.name)
        if computation is None:
            return None
        found = _ELEMENT.match(buffer.index)
        return Node(computation, buffer.name, int(found[1]) if found else -1)

    def _weight(self, node: Node) -> str:
        """The path of the weight that a value is, gathered, cast or copied; "" for none."""
        for near in self.flow.back(node, moves):
            i = self.flow.instruction(near)
            if path := weight_in(i.op_name):
                return path if moves(i) else ""
            if not moves(i) and i.opcode not in ("constant", "iota", "partition-id"):
                return ""
        places = self.ways.origins(node)
        is_weight = places and {place.group for place in places} == {PARAMETERS}
        return parameter_of(places) if is_weight else ""

    def looped(self, i: Instruction) -> str:
        """Of a value that a loop carries, the first weight that the loop uses; else ""."""
        body = next((name for role, name in i.calls if role == "body"), "")
        if i.opcode == "parameter":
            body = self._where.get(i.name, "")
        if not body or body == self.ways.entry.name:
            return ""
        inside = self.flow.module.computations[body].instructions
        return next(filter(None, (weight_in(one.op_name) for one in inside)), "")

    def _spans_backward(self, buffer: Buffer) -> bool:
        """Whether a value is live when something of the backward pass begins."""
        first = bisect_right(self._backward, buffer.begin)
        return first < len(self._backward) and self._backward[first] <= buffer.end

    def argument(self, allocation: Allocation) -> Place | None:
        """The array of the state or the batch that an allocation holds; None for no argument."""
        return self._arguments.get(allocation.parameter)

    @cached_property
    def _arguments(self) -> dict[int, Place | None]:
        """Number of an argument of the program -> what it is."""
        return {
            int(i.arguments): self.places.argument(i)
            for i in self.ways.entry.instructions
            if i.opcode == "parameter"
        }


def _is_inner(buffer: Buffer) -> bool:
    """Whether a value is an element other than the first: the workspace of a library's call."""
    return buffer.index not in ("{}", "{0}")
