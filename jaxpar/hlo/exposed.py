"""How much of a program's communication no work hides: its schedule, walked instruction by
instruction.

One stream computes, in the order in which XLA scheduled a computation; another communicates, one
collective after the other, and a collective that is asynchronous runs between its start and its
done. What the first has to wait for is exposed. Times are estimates from rates, for programs to be
compared; they are no prediction of a step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from jaxpar.hlo.collectives import Collective, collectives
from jaxpar.hlo.executions import trip_count
from jaxpar.hlo.parse import Computation, Instruction, Module
from jaxpar.hlo.touched import is_product, touched_bytes

_CONTRACTED = re.compile(r'"?lhs_contracting_dim(?:ension)?s"?[=:][\[{]"?(\d+(?:"?,"?\d+)*)')
_DONE = ("-done", "-update")


@dataclass(frozen=True)
class Speeds:
    """What a device does in a second, as assumed.

    Attributes:
        flops_per_second: dtype of a product's operands, as XLA has it -> multiply-adds times two.
        memory_bytes_per_second: read and written.
        link_bytes_per_second: (a collective) -> bytes that a device sends in it.
    """

    flops_per_second: Callable[[str], float]
    memory_bytes_per_second: float
    link_bytes_per_second: Callable[[Collective], float]


@dataclass(frozen=True)
class Exposed:
    """Seconds of one run of a program on one device.

    Attributes:
        work_seconds: of products and of what touches memory.
        communication_seconds: of all collectives, one after the other.
        exposed_seconds: of them while nothing was computed.
    """

    work_seconds: float = 0.0
    communication_seconds: float = 0.0
    exposed_seconds: float = 0.0

    def __add__(self, other: "Exposed") -> "Exposed":
        """Both, one after the other."""
        return Exposed(
            self.work_seconds + other.work_seconds,
            self.communication_seconds + other.communication_seconds,
            self.exposed_seconds + other.exposed_seconds,
        )

    def __mul__(self, times: float) -> "Exposed":
        """So many in a row."""
        return Exposed(
            self.work_seconds * times,
            self.communication_seconds * times,
            self.exposed_seconds * times,
        )


def exposed(module: Module, speeds: Speeds) -> Exposed:
    """Walk a scheduled program; loops as often as they turn, of branches the longest.

    Raises:
        ValueError: for a product that its operands cannot make.
    """
    return _Walk(module, speeds).of(module.computations[module.entry])


class _Walk:
    """One walk of a module; what was found of a computation is kept."""

    def __init__(self, module: Module, speeds: Speeds):
        self.module, self.speeds = module, speeds
        self.collectives = {(c.computation, c.name): c for c in collectives(module)}
        self.known: dict[str, Exposed] = {}
        self.products: dict[str, float] = {}

    def of(self, computation: Computation) -> Exposed:
        """What one run of a computation takes."""
        if computation.name not in self.known:
            self.known[computation.name] = self._walked(computation)
        return self.known[computation.name]

    def _walked(self, computation: Computation) -> Exposed:
        """Its instructions in order; `now` is the computing stream's clock, `free` the other's."""
        total, now, free = Exposed(), 0.0, 0.0
        ends: dict[str, float] = {}
        for i in computation.instructions:
            one = self._collective(computation, i)
            if one is not None:
                seconds = _sent_bytes(one) / self.speeds.link_bytes_per_second(one)
                free = max(now, free) + seconds
                ends[i.name] = free
                total += Exposed(communication_seconds=seconds)
                if not one.is_async:
                    total, now = _waited(total, now, free)
            elif i.opcode.endswith(_DONE):
                ends[i.name] = max((ends.get(name, 0.0) for name in i.operands), default=0.0)
                if i.opcode.endswith("-done"):
                    total, now = _waited(total, now, ends[i.name])
            else:
                done = self._done(computation, i)
                total += done
                now += done.work_seconds + done.exposed_seconds
        return total

    def _collective(self, computation: Computation, i: Instruction) -> Collective | None:
        """The collective that an instruction begins, if it begins one."""
        if i.opcode == "async-start":
            inside = self.module.computations[i.calls[0][1]].instructions
            found = [self.collectives.get((i.calls[0][1], one.name)) for one in inside]
            return next((one for one in found if one is not None), None)
        return self.collectives.get((computation.name, i.name))

    def _done(self, computation: Computation, i: Instruction) -> Exposed:
        """What an instruction that is no collective takes."""
        if i.opcode in ("while", "call", "conditional"):
            parts = [
                self.of(self.module.computations[name])
                for role, name in i.calls
                if role != "condition"
            ]
            times = trip_count(self.module, computation, i)[0] if i.opcode == "while" else 1
            longest = max(parts, key=lambda e: e.work_seconds + e.exposed_seconds)
            return longest * float(times)
        if is_product(self.module, i):
            return Exposed(self._product_seconds(computation, i))
        return Exposed(
            touched_bytes(self.module, computation, i) / self.speeds.memory_bytes_per_second
        )

    def _product_seconds(self, computation: Computation, i: Instruction) -> float:
        """The seconds of a product, or of those within a fusion."""
        if i.calls:
            body = self.module.computations[i.calls[0][1]]
            if body.name not in self.products:
                inside = [one for one in body.instructions if is_product(self.module, one)]
                self.products[body.name] = sum(self._product_seconds(body, one) for one in inside)
            return self.products[body.name]
        try:
            dtype = computation.by_name[i.operands[0]].shapes[0][0]
            flops = _flops(computation, i)
        except (IndexError, ValueError):  # too few operands, or of too few dims
            raise ValueError(f"{i.name}: no product can be made of its operands") from None
        return flops / self.speeds.flops_per_second(dtype)


def _waited(total: Exposed, now: float, end: float) -> tuple[Exposed, float]:
    """The total and the clock after the computing stream has waited until `end`."""
    return (total + Exposed(exposed_seconds=end - now), end) if end > now else (total, now)


def _sent_bytes(one: Collective) -> float:
    """The bytes that each device sends, by rings."""
    members = max(map(len, one.groups), default=2)
    if one.kind == "collective-permute":
        return one.bytes_each
    share = (members - 1) / members
    return one.bytes_each * share * (2 if one.kind == "all-reduce" else 1)


def _flops(computation: Computation, i: Instruction) -> float:
    """Multiply-adds times two of one product; of a convolution, which is rare, its result's."""
    shapes = [computation.by_name[name].shapes[0][1] for name in i.operands]
    if "fmha" in i.attributes:
        # Two products forward and five backward; half of the scores where a mask is causal.
        (rows, queries, heads, size), keys = shapes[0], shapes[1][1]
        products = 5 if "Backward" in i.attributes else 2
        half = 0.5 if "CAUSAL" in i.attributes else 1.0
        return 2.0 * products * rows * heads * queries * keys * size * half
    result = 2.0 * prod(i.shapes[0][1])
    found = _CONTRACTED.search(i.attributes)
    if found is None:
        return result
    return result * prod(shapes[0][int(n)] for n in re.findall(r"\d+", found[1]))
