"""What is searched: a question, the candidates that may answer it, and what was found of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxpar.case import Case


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
        estimate: seconds by formulas, before.
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
