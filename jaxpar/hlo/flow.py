"""Where a value of a compiled program comes from and where it goes: through loops, calls, tuples.

A `Flow` of a module answers for one value at a time. A value is a `Node`: the result of an
instruction, or one element of it. Through a computation that is called from several places values
are only followed where it computes with each element alone. What is inside a tuple that is within
another is not told apart.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from jaxpar.hlo.parse import Computation, Instruction, Module

MOVES = frozenset(
    "copy copy-start copy-done bitcast bitcast-convert reshape transpose convert slice "
    "dynamic-slice dynamic-update-slice reverse pad concatenate tuple get-tuple-element "
    "opt-barrier while call conditional fusion parameter reduce-precision all-gather all-to-all "
    "collective-permute collective-broadcast async-start async-update async-done".split()
)
"""Operations that only move values, whole or in part, or hand them on."""

ELEMENTWISE = frozenset(
    "add subtract multiply divide negate abs sign sqrt rsqrt cbrt power maximum minimum clamp "
    "select compare and or not exponential exponential-minus-one log log-plus-one tanh logistic "
    "floor ceil round-nearest-afz round-nearest-even remainder is-finite sine cosine "
    "all-reduce reduce-scatter".split()
)
"""Operations of which each element of the result is made of one of every operand."""

_CONSTANT = ("constant", "iota", "broadcast")
_INDEX = re.compile(r"index=(\d{1,18})")
_ENTERS = ("fusion", "call", "async-start", "map")
"""What hands its operands to a computation's parameters, one for one."""


@dataclass(frozen=True)
class Node:
    """The result of an instruction; `at` is an element of a tuple, -1 for all of it."""

    computation: str
    name: str
    at: int = -1


class Flow:
    """The ways of values through one module."""

    def __init__(self, module: Module):
        self.module = module

    @cached_property
    def callers(self) -> dict[str, list[tuple[Computation, Instruction, str, int]]]:
        """Computation -> who passes control to it: (where, instruction, role, which of its)."""
        found: dict[str, list[tuple[Computation, Instruction, str, int]]] = {}
        for where in self.module.computations.values():
            for i in where.instructions:
                if i.opcode in (*_ENTERS, "while", "conditional"):
                    for number, (role, name) in enumerate(i.calls):
                        found.setdefault(name, []).append((where, i, role, number))
        return found

    @cached_property
    def _users(self) -> dict[tuple[str, str], list[Instruction]]:
        """(computation, name) -> the instructions that have it among their operands."""
        found: dict[tuple[str, str], list[Instruction]] = {}
        for where in self.module.computations.values():
            for i in where.instructions:
                for name in dict.fromkeys(i.operands):
                    found.setdefault((where.name, name), []).append(i)
        return found

    def _is_shared(self, i: Instruction) -> bool:
        """Whether an instruction calls what others call too."""
        return i.opcode in _ENTERS and any(len(self.callers[name]) > 1 for _, name in i.calls)

    def _through(self, i: Instruction) -> tuple[str, ...]:
        """The operands that each element of the result of a shared call is made of alone."""
        inside = [one for _, name in i.calls for one in self.module.computations[name].instructions]
        alone = all(keeps_elements(one) or one.opcode in _CONSTANT for one in inside)
        return i.operands if alone else ()

    def instruction(self, node: Node) -> Instruction:
        """The instruction that a node is a result of."""
        return self.module.computations[node.computation].by_name[node.name]

    def keeps_elements(self, node: Node) -> bool:
        """Whether a value is made of its operands element by element; see `keeps_elements`.

        A sum over dims of size 1 is, too.
        """
        i = self.instruction(node)
        if i.opcode != "reduce":
            return keeps_elements(i)
        source = self.module.computations[node.computation].by_name[i.operands[0]]
        return len(i.shapes) == 1 and prod(i.shapes[0][1]) == prod(source.shapes[0][1])

    def sources(self, node: Node) -> Iterator[Node]:
        """The values that a value is made of, one step back."""
        where, i, at = self.module.computations[node.computation], self.instruction(node), node.at
        if i.opcode == "parameter":
            yield from self._given(where, int(i.arguments), at)
        elif self._is_shared(i):
            yield from (Node(where.name, name) for name in self._through(i))
        elif i.opcode in ("while", *_ENTERS, "conditional") and i.calls:
            for role, name in i.calls:
                if role != "condition":
                    yield Node(name, self.module.computations[name].root.name, at)
        elif i.opcode == "get-tuple-element":
            yield Node(where.name, i.operands[0], index_of(i))
        elif len(i.operands) > at >= 0 and hands_on_each(i):
            yield Node(where.name, i.operands[at])
        else:
            inner = at if len(i.operands) == 1 else -1
            yield from (Node(where.name, name, inner) for name in i.operands)

    def _given(self, where: Computation, number: int, at: int) -> Iterator[Node]:
        """What a computation's parameter is given by its callers."""
        for caller, i, _, branch in self.callers.get(where.name, ()):
            if i.opcode == "while":
                yield Node(caller.name, i.operands[0], at)
                body = next(name for r, name in i.calls if r == "body")
                yield Node(body, self.module.computations[body].root.name, at)
            elif i.opcode == "conditional":
                yield from (Node(caller.name, n, at) for n in i.operands[branch + 1 : branch + 2])
            else:
                yield from (Node(caller.name, n, at) for n in i.operands[number : number + 1])

    def uses(self, node: Node) -> Iterator[Node]:
        """The values that a value goes into, one step on."""
        where = self.module.computations[node.computation]
        for user in self._users.get((node.computation, node.name), ()):
            yield from self._used(where, user, node)
        if where.root.name == node.name and len(self.callers.get(where.name, ())) < 2:
            for caller, i, role, _ in self.callers.get(where.name, ()):
                if role != "condition":
                    yield Node(caller.name, i.name, node.at)
                if role == "body":
                    yield from self._parameters(where.name, 0, node.at)

    def _used(self, where: Computation, user: Instruction, node: Node) -> Iterator[Node]:
        """What one user of a value makes of it."""
        places = [n for n, name in enumerate(user.operands) if name == node.name]
        if user.opcode == "get-tuple-element":
            if node.at in (-1, index_of(user)):
                yield Node(where.name, user.name)
        elif self._is_shared(user):
            yield from [Node(where.name, user.name)] * (node.name in self._through(user))
        elif user.opcode in ("while", "conditional", *_ENTERS) and user.calls:
            for branch, (role, name) in enumerate(user.calls):
                for place in places:
                    if user.opcode == "conditional" and place != branch + 1:
                        continue
                    number = place if user.opcode in _ENTERS else 0
                    if role != "condition":
                        yield from self._parameters(name, number, node.at)
        elif hands_on_each(user):
            yield from (Node(where.name, user.name, place) for place in places)
        else:
            yield Node(where.name, user.name, node.at if len(user.operands) == 1 else -1)

    def _parameters(self, computation: str, number: int, at: int) -> Iterator[Node]:
        """The parameter of this number of a computation."""
        for i in self.module.computations[computation].instructions:
            if i.opcode == "parameter" and i.arguments == str(number):
                yield Node(computation, i.name, at)

    def back(self, node: Node, through: Callable[[Instruction], bool]) -> Iterator[Node]:
        """A value and all that it is made of, nearest first, looked through `through` only."""
        return self._walked(node, self.sources, lambda n: through(self.instruction(n)))

    def on(self, node: Node, through: Callable[[Instruction], bool]) -> Iterator[Node]:
        """A value and all that is made of it, nearest first, by instructions that `through`
        allows."""

        def step(n: Node) -> Iterator[Node]:
            return (u for u in self.uses(n) if through(self.instruction(u)))

        return self._walked(node, step, lambda _: True)

    @staticmethod
    def _walked(start: Node, step: Callable, goes_on: Callable[[Node], bool]) -> Iterator[Node]:
        """Breadth first from a node, each node once."""
        queue, seen = [start], {start}
        for node in queue:  # the list grows while we walk it
            yield node
            if goes_on(node):
                fresh = [n for n in dict.fromkeys(step(node)) if n not in seen]
                seen.update(fresh)
                queue += fresh


def index_of(i: Instruction) -> int:
    """Which element a get-tuple-element takes."""
    found = _INDEX.search(i.attributes)
    return int(found[1]) if found else -1


def hands_on_each(i: Instruction) -> bool:
    """Whether element n of the result is made of operand n alone: tuples, combined collectives."""
    return (
        i.opcode == "tuple"
        or len(i.operands) > 1
        and i.opcode.removesuffix("-start")
        in (
            "all-reduce",
            "all-gather",
            "reduce-scatter",
            "collective-permute",
        )
    )


def moves(i: Instruction) -> bool:
    """Whether an instruction only moves values, or hands them on."""
    return i.opcode.removesuffix("-start").removesuffix("-done") in MOVES or i.opcode in MOVES


def keeps_elements(i: Instruction) -> bool:
    """Whether an instruction moves values or computes with each alone."""
    bare = i.opcode.removesuffix("-start").removesuffix("-done")
    return moves(i) or bare in ELEMENTWISE
