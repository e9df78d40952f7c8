"""What one walk through a function shares: mesh sizes, the list of collectives, where it stands.

Also the refusal, `ManualError`, and the record of one collective.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import jax

from jaxpar.core.errors import RequestError
from jaxpar.core.source_lines import line_of


class ManualError(RequestError):
    """This cannot be run in manual mode; the sentence says where, why and what to do instead."""


@dataclass(frozen=True)
class Collective:
    """One collective placed in the forward pass.

    Attributes:
        kind: as XLA spells it, "all-reduce", "all-gather" or "all-to-all".
        axes: the mesh axes it runs over.
        primitive: the JAX primitive that needed it.
        reason: why, in one sentence.
        source: file, line and function of the user's code that asked for that primitive.
        bytes: size of the array that each device holds afterwards.
        times: how often it runs in one call; a `while` loop counts as one turn.
        looped: whether it stands inside a loop.
    """

    kind: str
    axes: tuple[str, ...]
    primitive: str
    reason: str
    source: str
    bytes: int
    times: int = 1
    looped: bool = False


@dataclass
class Run:
    """The state that the frames of one walk share.

    Attributes:
        sizes: of the mesh axes that are walked over.
        rules: primitive, or kind of primitive -> how it is run on shards.
        place: (names, shape) -> how an array that the function names is sharded, `used` and
            `between`; None to leave such an array as it is computed.
        kept: what, by its name, is left as it is stored where each element is computed by itself.
        log: the collectives placed so far.
        trail: the equations that are being run, outermost first.
        custom: by equation, what is known of functions with derivative rules of their own.
    """

    sizes: Mapping[str, int]
    rules: Mapping[str, Callable]
    place: Callable[..., Any] | None = None
    kept: frozenset[str] = frozenset()
    log: list[Collective] = field(default_factory=list)
    trail: list[Any] = field(default_factory=list)
    custom: dict[int, Any] = field(default_factory=dict)

    def count(self, axes) -> int:
        """How many devices the axes span."""
        return prod(self.sizes[axis] for axis in axes)

    @property
    def primitive(self) -> str:
        """The primitive of the equation being walked."""
        return self.trail[-1].primitive.name if self.trail else "return"

    @property
    def source(self) -> str:
        """Where the user's code asked for it; the call, where a cached inner jit has no lines."""
        for eqn in reversed(self.trail):
            if line := line_of(eqn.source_info):
                return line
        return ""

    def note(self, kind: str, axes, reason: str, array, times: int = 1) -> None:
        """Add a collective to the log; `array` is what it leaves on each device, or its type."""
        size = prod(array.shape) * array.dtype.itemsize
        entry = Collective(kind, tuple(axes), self.primitive, reason, self.source, size, times)
        self.log.append(entry)

    def refuse(self, why: str) -> ManualError:
        """The error for the equation being walked, with its line."""
        at = f" ({self.source})" if self.source else ""
        return ManualError(f"{self.primitive}{at}: {why}; use mode 'auto' for this function")

    def repeat(self, attempt, start) -> None:
        """Trace `attempt(*start())` without keeping its operations, until it returns False.

        Ends when used with a Carry, whose placements only get finer and types only vary more.
        """
        again = [True]
        while again[0]:

            def once(*arrays):
                # A new function each time, since JAX does not trace one function twice.
                again[0] = attempt(*arrays)
                return ()

            with self.aside():
                jax.eval_shape(once, *start())

    @contextmanager
    def aside(self):
        """Collect collectives in a list of their own, to be kept or dropped by the caller."""
        outer, self.log = self.log, []
        depth = len(self.trail)
        try:
            yield self.log
        finally:
            self.log = outer
            del self.trail[depth:]

    def keep(self, entries, *, times: int = 1, looped: bool = False) -> None:
        """Add a list that was written aside, as of a loop's body of this many turns."""
        self.log += [
            replace(entry, times=entry.times * times, looped=entry.looped or looped)
            for entry in entries
        ]
