"""What is searched: a question, the candidates that may answer it, and what was found of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxpar.case import Case, strategy_options
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape

CHOSEN = ("remat", "microbatches")
"""Fields in which layouts of a search may differ, beside the options of their strategies."""


@dataclass(frozen=True)
class Candidate:
    """One layout, in the words of the command line.

    Attributes:
        strategy, mesh: as typed.
        set: fields that the search chooses, such as remat and microbatches.
    """

    strategy: str
    mesh: str
    set: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As `compare` takes it: strategy@mesh@field=value.

        >>> Candidate("fsdp", "data=8", {"remat": "full"}).name
        'fsdp@data=8@remat=full'
        """
        return "@".join([self.strategy, self.mesh, *(f"{k}={v}" for k, v in self.set.items())])

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """The layout that `compare` would take that text for; its fields are kept as text.

        >>> Candidate.parse("fsdp@data=8@remat=full")
        Candidate(strategy='fsdp', mesh='data=8', set={'remat': 'full'})

        Raises:
            RequestError: there is no strategy, no mesh, or a field without a value.
        """
        strategy, *more = text.split("@")
        fields = [one.partition("=") for one in more[1:]]
        is_whole = strategy and more and more[0] and all(n and sign for n, sign, _ in fields)
        if not is_whole:
            raise RequestError(
                f"layout '{text}': write STRATEGY@MESH, such as fsdp@data=8, and fields that "
                "differ behind it, such as fsdp@data=8@remat=full"
            )
        MeshShape.parse(more[0])
        return cls(strategy, more[0], {name.strip(): value for name, _, value in fields})

    def options(self) -> dict[str, Any]:
        """Those of its fields that its strategy takes.

        Raises:
            RequestError: an unknown strategy.
        """
        known = strategy_options(self.strategy)
        return {name: value for name, value in self.set.items() if name in known}

    def case(self, question: Case) -> Case:
        """The question with this layout."""
        return replace(
            question, strategy=self.strategy, mesh=self.mesh, set={**question.set, **self.set}
        )


@dataclass(frozen=True)
class Estimate:
    """What a layout costs by formulas, before anything is compiled.

    Attributes:
        seconds: of a step.
        parts: of it, by name.
        state_bytes: that a device holds of the state; every program of the layout holds as much.
        memory_bytes: at the peak, roughly.
    """

    seconds: float
    parts: Mapping[str, float]
    state_bytes: int
    memory_bytes: float


@dataclass(frozen=True)
class Rated:
    """A layout with its estimate.

    Attributes:
        candidate, estimate: the layout, and what it costs by formulas.
        usable_bytes: what a program can have of a device's memory.
    """

    candidate: Candidate
    estimate: Estimate
    usable_bytes: float

    @property
    def may_fit(self) -> bool:
        """Whether its memory is within what a program can have, as far as formulas tell."""
        return self.estimate.memory_bytes <= self.usable_bytes

    def record(self) -> dict[str, Any]:
        """Layout and estimate as a JSON-ready dict."""
        return {
            "layout": self.candidate.name,
            "seconds": self.estimate.seconds,
            "memory_bytes": self.estimate.memory_bytes,
            "may_fit": self.may_fit,
        }


@dataclass(frozen=True)
class Refused:
    """Layouts that are not tried, and why: a sentence, and how many are like the first."""

    candidate: Candidate
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Found:
    """A layout that was compiled.

    Attributes:
        candidate: the layout.
        estimate_seconds: of a step by formulas, before.
        prediction: the record of `jaxpar.predict`, or {"refusal": why} where there is none.
    """

    candidate: Candidate
    estimate_seconds: float
    prediction: Mapping[str, Any]

    @property
    def fits(self) -> bool:
        """Whether there is a program, and the device has the memory for it."""
        return bool(self.prediction.get("fits"))

    @property
    def seconds(self) -> float:
        """Predicted seconds of a step; infinite where there is no program."""
        return self.prediction.get("step_seconds", float("inf"))
