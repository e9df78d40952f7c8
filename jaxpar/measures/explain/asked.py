"""What the module right after partitioning tells of each collective: each has its own metadata yet.

`Asked` is one operand of one collective there, with what is known of where it comes from and goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxpar.core.scopes import weight_in
from jaxpar.hlo.collectives import axes_of, collectives
from jaxpar.hlo.flow import Flow, Node, moves
from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.partial_sums import Sums
from jaxpar.hlo.parts import Part, full_name, parts_of
from jaxpar.hlo.values import Value
from jaxpar.measures.explain.places import OTHER, PARAMETERS, Place, Places

_FAR = 400
"""So many values are looked at for the nearest weight."""


@dataclass(frozen=True)
class Ends:
    """Where what a collective moves comes from and goes to.

    Attributes:
        origins: the arguments that it is, moved only.
        results: the results of the program that are made of it element by element.
    """

    origins: frozenset[Place]
    results: frozenset[Place]


@dataclass(frozen=True)
class Asked:
    """One operand of a collective of the partitioned module.

    Attributes:
        part: it.
        kind: of the collective.
        axes: the mesh axes along which data moves.
        name: of the operation that asked for it, in full.
        ends: where it comes from and goes.
        value: what is known of it; None where it is not followed.
        producer: what computes it, behind what only moves it; None for an argument.
        nearest: the path of the nearest weight that it is computed with; "" for none.
        is_transposed: whether what it is computed of is of the backward pass.
    """

    part: Part
    kind: str
    axes: tuple[str, ...]
    name: str
    ends: Ends
    value: Value | None
    producer: Instruction | None
    nearest: str
    is_transposed: bool


class Ways:
    """Where values of a module come from and go to, in the words of a step."""

    def __init__(self, flow: Flow, places: Places):
        self.flow, self.places = flow, places
        self.entry = flow.module.computations[flow.module.entry]

    def ends(self, part: Part) -> Ends:
        """Where what a part of a collective moves comes from and goes to."""
        results = frozenset(place for node in part.results for place in self.results(node))
        return Ends(self.origins(part.operand), results)

    def origins(self, start: Node) -> frozenset[Place]:
        """The arguments of the program that a value is, moved only."""
        places = (self._argument(node) for node in self.flow.back(start, moves))
        return frozenset(place for place in places if place is not None)

    def results(self, start: Node) -> frozenset[Place]:
        """The results of the program that are made of a value element by element."""
        at = self._reached.get(start, 0) | self._reached.get(replace(start, at=-1), 0)
        return frozenset(p for n, p in enumerate(self.places.results) if at >> n & 1)

    @cached_property
    def _reached(self) -> dict[Node, int]:
        """A value -> the results that are made of it element by element, a bit each."""
        root = self.entry.root
        found = {
            Node(self.entry.name, root.name, n): 1 << n for n in range(len(self.places.results))
        }
        queue = list(found)
        for node in queue:  # the list grows while we walk it
            if self.flow.keeps_elements(node):
                for source in self.flow.sources(node):
                    bits = found.get(source, 0) | found[node]
                    if bits != found.get(source, 0):
                        found[source] = bits
                        queue.append(source)
        return found

    def _argument(self, node: Node) -> Place | None:
        """The argument of the program that a value is."""
        i = self.flow.instruction(node)
        is_one = i.opcode == "parameter" and node.computation == self.entry.name
        return self.places.argument(i) if is_one else None

    def producer(self, start: Node) -> Instruction | None:
        """What computes a value, behind what only moves it."""
        for node in self.flow.back(start, moves):
            i = self.flow.instruction(node)
            if not moves(i) and i.opcode not in ("constant", "iota"):
                return i
        return None

    def nearest(self, start: Node) -> tuple[str, bool]:
        """(path of the nearest weight, whether the nearest named operation is transposed)."""
        is_transposed, told = False, False
        for count, node in enumerate(self.flow.back(start, lambda _: True)):
            i = self.flow.instruction(node)
            if not told and ("jvp(" in i.op_name or "transpose(" in i.op_name):
                is_transposed, told = "transpose(" in i.op_name, True
            if path := weight_in(i.op_name):
                return path, is_transposed
            place = self._argument(node)
            if place is not None and place.group == PARAMETERS:
                return place.path, is_transposed
            if count > _FAR:
                break
        return "", is_transposed


def asked_of(module: Any, places: Places, sums: Sums) -> tuple[Asked, ...]:
    """Every operand of every collective of a partitioned module."""
    flow = Flow(module)
    ways = Ways(flow, places)
    found = []
    for one in collectives(module):
        axes = axes_of(one, sums.axis_sizes)
        for part in parts_of(flow, one):
            nearest, is_transposed = ways.nearest(part.operand)
            asked = Asked(
                part=part,
                kind=one.kind,
                axes=axes,
                name=full_name(flow, one.computation, one.op_name),
                ends=ways.ends(part),
                value=sums.operand(one, part.number),
                producer=ways.producer(part.operand),
                nearest=nearest,
                is_transposed=is_transposed,
            )
            found.append(asked)
    return tuple(found)


def one_path(places: frozenset[Place], *groups: str) -> str:
    """The one path that places of these groups have; "" for none, or several."""
    paths = {place.path for place in places if not groups or place.group in groups}
    return paths.pop() if len(paths) == 1 else ""


def parameter_of(places: frozenset[Place]) -> str:
    """The one parameter that places are, or are the optimizer's state of; "" for none."""
    paths = {place.path for place in places if place.group != OTHER and place.path}
    return paths.pop() if len(paths) == 1 else ""
