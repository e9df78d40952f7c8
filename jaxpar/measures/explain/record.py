"""The Explained and Explanation records: each collective of a step, and why it is there."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass

from jaxpar.measures.finding import Finding

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
PHASES = (FORWARD, BACKWARD, UPDATE)
SYNCHRONISATION = "synchronisation"
"""The phase of what replicas of local SGD do now and then."""


@dataclass(frozen=True)
class Explained:
    """Collectives of a step that are alike in all but where they stand in the schedule.

    Attributes:
        kind: XLA's.
        axes: the mesh axes along which data moves, outermost first.
        bytes: of a step, the payload as one device sees it: the unreduced array of an all-reduce or
            reduce-scatter, the gathered one of an all-gather, else what one device hands over.
        count: how often a step runs them, loops counted.
        phase: FORWARD, BACKWARD or UPDATE; SYNCHRONISATION for those of a synchronisation, of
            which bytes and count are then.
        recomputed: whether rematerialization asks for them again.
        what: what they move, "weight blocks/up", "gradient of blocks/up", "activation", ...
        parameter: the path of the parameter that it is, or is of; "" for an activation.
        module: the module it belongs to, layers of a stack as `*`; "" where it is not known.
        source: the person's line, "file:line"; "" where it is not known.
        reason: why they are there, one sentence; "" where it is not known.
        overlapped: whether other work is scheduled while they run.
        crosses_nodes: whether devices of several nodes take part; None where nodes are not known.
        operations: the names of the HLO instructions that carry them.
        combined: whether XLA joined them with others into one.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    count: int
    phase: str
    recomputed: bool
    what: str
    parameter: str
    module: str
    source: str
    reason: str
    overlapped: bool
    crosses_nodes: bool | None
    operations: tuple[str, ...] = ()
    combined: bool = False

    @property
    def is_attributed(self) -> bool:
        """Whether it has a line and a reason."""
        return bool(self.source and self.reason)

    def record(self) -> dict:
        """It as one JSON-ready dict."""
        return {**asdict(self), "axes": list(self.axes), "operations": list(self.operations)}


@dataclass(frozen=True)
class Explanation:
    """The collectives of one step, explained.

    Attributes:
        rows: most bytes first.
        faults: partial sums that are certainly not reduced as they should be.
        seconds: wall clock that explaining took, without compiling.
        synchronisation: the collectives of one synchronisation of replicas, most bytes first.
        every: how many updates come before each; 0 where it comes at the end of training alone.
    """

    rows: tuple[Explained, ...]
    faults: tuple[Finding, ...] = ()
    seconds: float = 0.0
    synchronisation: tuple[Explained, ...] = ()
    every: int = 0

    @property
    def unattributed_share(self) -> float:
        """The share of bytes without a line of the person's code, or without a reason.

        Those of a synchronisation count as if it came after each update.
        """
        rows = (*self.rows, *self.synchronisation)
        total = sum(row.bytes for row in rows)
        lost = sum(row.bytes for row in rows if not row.is_attributed)
        return lost / total if total else 0.0

    def by(self, key: Callable[[Explained], Hashable]) -> dict[Hashable, int]:
        """Bytes of a step summed by something of a row, most first.

        A synchronisation counts for each of the updates that it comes after, and for none at the
        end of training.
        """
        sums: dict[Hashable, int] = {}
        for row in self.rows:
            sums[key(row)] = sums.get(key(row), 0) + row.bytes
        for row in self.synchronisation if self.every else ():
            sums[key(row)] = sums.get(key(row), 0) + round(row.bytes / self.every)
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def record(self) -> dict:
        """The explanation as one JSON-ready dict."""
        return {
            "collectives": [row.record() for row in self.rows],
            "averaging_collectives": [row.record() for row in self.synchronisation],
            "unattributed_share": self.unattributed_share,
            "bytes_per_step_by_phase": self.by(lambda row: row.phase),
            "bytes_per_step_by_module": self.by(lambda row: row.module or "unknown"),
            "explain_seconds": self.seconds,
        }
