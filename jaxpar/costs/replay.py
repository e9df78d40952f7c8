"""A scheduled program replayed on a device: when each instruction begins and ends, on two streams.

One stream computes, in the order in which XLA scheduled a computation; another communicates, one
collective after the other, and a collective that is asynchronous runs between its start and its
done. What the first waits for is exposed. Work that runs while a collective does is slower, for
the collective's kernels take multiprocessors from it. A loop is replayed once, and counts as often
as it turns: XLA ends in a turn what a turn began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxpar.core.scopes import TICK, TURNS
from jaxpar.costs.links import collective_seconds
from jaxpar.costs.rates import Device
from jaxpar.hlo.collectives import Collective, collectives
from jaxpar.hlo.executions import shares_taken, trip_count
from jaxpar.hlo.parse import Computation, Instruction, Module
from jaxpar.hlo.products import Counted, FusedAttention, products_of
from jaxpar.hlo.touched import touched_bytes

COMPUTE, COMMUNICATION = "compute", "communication"
KINDS = ("product", "attention", "memory", "bubble", "collective")


@dataclass(frozen=True)
class Slice:
    """One run of an instruction on a stream.

    Attributes:
        name: of the instruction.
        computation: in which it is.
        stream: COMPUTE or COMMUNICATION.
        kind: one of KINDS.
        start_seconds, seconds: from the beginning of its computation's run, and how long.
        flops, bytes: of products; touched, or of a collective's payload.
    """

    name: str
    computation: str
    stream: str
    kind: str
    start_seconds: float
    seconds: float
    flops: float = 0.0
    bytes: float = 0.0


@dataclass(frozen=True)
class Part:
    """A computation that runs within another: a loop's, or the branch taken.

    Attributes:
        start_seconds: of its first run.
        times: how often it runs, one after the other.
        replay: of one run.
        share: of its seconds that it takes here; a tick of a pipeline is drawn by its longest work.
    """

    start_seconds: float
    times: float
    replay: Replay
    share: float = 1.0


@dataclass(frozen=True)
class Replay:
    """One run of a computation.

    Attributes:
        seconds: from beginning to end.
        work_seconds: kind -> of the computing stream, parts included.
        communication_seconds: of all collectives, one after the other.
        exposed: (computation, collective) -> seconds for which nothing was computed.
        crowded_seconds: by how much collectives beside it made work longer.
        slices: those of its own instructions, in order of their starts.
        parts: what it runs of other computations.
    """

    seconds: float
    work_seconds: Mapping[str, float]
    communication_seconds: float
    exposed: Mapping[tuple[str, str], float]
    crowded_seconds: float
    slices: tuple[Slice, ...]
    parts: tuple[Part, ...]

    def __repr__(self) -> str:
        return f"<Replay of {len(self.slices)} slices: {self.seconds:.6f} s>"

    @property
    def exposed_seconds(self) -> float:
        """Of all collectives, while nothing was computed."""
        return sum(self.exposed.values())


def replay(module: Module, device: Device) -> Replay:
    """Replay a scheduled program on a device; of branches the longest is taken.

    Raises:
        ValueError: for a program whose text is damaged.
    """
    return _Walk(module, device).of(module.computations[module.entry])


class _Walk:
    """One walk of a module; what was found of a computation is kept."""

    def __init__(self, module: Module, device: Device):
        self.module, self.device = module, device
        self.collectives = {(c.computation, c.name): c for c in collectives(module)}
        self.known: dict[str, Replay] = {}
        self.products: dict[str, Counted] = {}

    def of(self, computation: Computation) -> Replay:
        """One run of a computation."""
        if computation.name not in self.known:
            self.known[computation.name] = _Run(self, computation).replay()
        return self.known[computation.name]

    def collective(self, computation: Computation, i: Instruction) -> Collective | None:
        """The collective that an instruction begins, if it begins one."""
        if i.opcode == "async-start":
            inside = self.module.computations[i.calls[0][1]].instructions
            found = [self.collectives.get((i.calls[0][1], one.name)) for one in inside]
            return next((one for one in found if one is not None), None)
        return self.collectives.get((computation.name, i.name))


@dataclass
class _Run:
    """The state of one run: `now` is the computing stream's clock, `free` the other's."""

    walk: _Walk
    computation: Computation
    now: float = 0.0
    free: float = 0.0
    communication: float = 0.0
    crowded: float = 0.0
    work: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS[:4], 0.0))
    exposed: dict[tuple[str, str], float] = field(default_factory=dict)
    ends: dict[str, tuple[float, tuple[str, str]]] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def replay(self) -> Replay:
        """Its instructions in order."""
        for i in self.computation.instructions:
            one = self.walk.collective(self.computation, i)
            if one is not None:
                self._begin(i, one)
            elif i.opcode.endswith(("-done", "-update")):
                self._hand_on(i)
            elif i.opcode in ("while", "call", "conditional"):
                self._enter(i)
            else:
                self._compute(i)
        return Replay(
            max(self.now, self.free), self.work, self.communication, self.exposed, self.crowded,
            tuple(self.slices), tuple(self.parts),
        )  # fmt: skip

    def _begin(self, i: Instruction, one: Collective) -> None:
        """Start a collective after those before it; one that is synchronous is waited for."""
        seconds = collective_seconds(one, self.walk.device)
        start = max(self.now, self.free)
        self.free = start + seconds
        self.communication += seconds
        about = (one.computation, one.name)
        self.ends[i.name] = (self.free, about)
        self.slices.append(
            Slice(one.name, one.computation, COMMUNICATION, "collective", start, seconds,
                  bytes=one.bytes_each)
        )  # fmt: skip
        if not one.is_async:
            self._wait(self.free, about)

    def _hand_on(self, i: Instruction) -> None:
        """The end of what its operand began; the computing stream waits at a done."""
        begun = [self.ends[name] for name in i.operands if name in self.ends]
        if begun:
            self.ends[i.name] = max(begun)
            if i.opcode.endswith("-done"):
                self._wait(*self.ends[i.name])

    def _wait(self, until: float, about: tuple[str, str]) -> None:
        """Let the computing stream stand still until a collective has ended."""
        if until > self.now:
            self.exposed[about] = self.exposed.get(about, 0.0) + until - self.now
            self.now = until

    def _enter(self, i: Instruction) -> None:
        """Run a loop, a call or the longest branch from now; of a pipeline's tick every branch."""
        module = self.walk.module
        parts = [
            self.walk.of(module.computations[name]) for role, name in i.calls if role != "condition"
        ]
        if tick := TICK.search(i.op_name):
            if TURNS.search(i.op_name):
                share = float(trip_count(module, self.computation, i)[0])
                return self._share(parts, [share], int(tick[1]) / int(tick[2]))
            if shares := [float(share) for share in shares_taken(i)]:
                return self._share(parts, shares)
        inner = max(parts, key=lambda part: part.seconds)
        times = float(trip_count(module, self.computation, i)[0])
        self.parts.append(Part(self.now, times, inner))
        # Its first collective comes after those begun here, which go on beside its work.
        self.now += times * inner.seconds
        if inner.communication_seconds:
            self.now += max(0.0, self.free - self.now)
        for kind, seconds in inner.work_seconds.items():
            self.work[kind] += times * seconds
        for about, seconds in inner.exposed.items():
            self.exposed[about] = self.exposed.get(about, 0.0) + times * seconds
        self.communication += times * inner.communication_seconds
        self.crowded += times * inner.crowded_seconds

    def _share(self, parts: list[Replay], shares: list[float], busy: float = 1.0) -> None:
        """Run a tick's work of one kind in a pipeline, in which stages do different work at once.

        A stage waits only for the neighbour that it exchanges with, and does forward and backward
        passes in turn: a tick takes what the work of a busy stage takes on average, where `busy` is
        the share of stages that are. What a device is idle of that is the bubble.
        """
        mean = sum(share * part.seconds for share, part in zip(shares, parts, strict=True))
        longest = max(parts, key=lambda part: part.seconds)
        if not mean or not busy:
            return
        seconds = mean / busy
        self.parts.append(Part(self.now, 1.0, longest, seconds / longest.seconds))
        self.now += seconds
        self.work["bubble"] += seconds - mean
        for share, part in zip(shares, parts, strict=True):
            for kind, spent in part.work_seconds.items():
                self.work[kind] += share * spent
            for about, spent in part.exposed.items():
                self.exposed[about] = self.exposed.get(about, 0.0) + share * spent
            self.communication += share * part.communication_seconds
            self.crowded += share * part.crowded_seconds

    def _compute(self, i: Instruction) -> None:
        """Run an instruction on the computing stream, slower while a collective runs."""
        kind, alone, flops, size = _cost(self.walk, self.computation, i)
        if not alone:
            return
        crowding = self.walk.device.reached.crowding
        beside = max(0.0, self.free - self.now)
        crowded = min(alone, beside / crowding) * (crowding - 1)
        self.slices.append(
            Slice(i.name, self.computation.name, COMPUTE, kind, self.now, alone + crowded,
                  flops=flops, bytes=size)
        )  # fmt: skip
        self.crowded += crowded
        self.work[kind] += alone
        self.now += alone + crowded


def _cost(walk: _Walk, computation: Computation, i: Instruction) -> tuple[str, float, float, float]:
    """(kind, seconds alone, FLOPs, bytes) of an instruction that is no collective."""
    device = walk.device
    found = products_of(walk.module, computation, i, walk.products)
    if not found:
        size = float(touched_bytes(walk.module, computation, i))
        return "memory", device.memory_seconds(size) if size else 0.0, 0.0, size
    seconds = sum(
        times * device.attention_seconds(one)
        if isinstance(one, FusedAttention)
        else times * device.product_seconds(one)
        for one, times in found.items()
    )
    kind = "attention" if isinstance(next(iter(found)), FusedAttention) else "product"
    flops = sum(times * one.flops for one, times in found.items())
    return kind, seconds, flops, float(sum(times * one.bytes for one, times in found.items()))
