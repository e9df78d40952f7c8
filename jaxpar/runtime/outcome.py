"""What training came to, be it to its end or to an error's."""

from dataclasses import dataclass
from pathlib import Path

from jaxpar.core.errors import RequestError, one_line
from jaxpar.core.figures import number_text, seconds_text
from jaxpar.report.notebook import notebook_html
from jaxpar.step.record import State


@dataclass(frozen=True)
class Outcome:
    """What training came to; `seconds` is from the first step to the last evaluation.

    `first` and `last` are the metrics of the first and last step, `test` those of the test split,
    empty where the data has none. `notes` are what a person should know of these figures, a
    sentence each. `finished` is False for training that was asked to stop before its last step;
    `checkpoint` is the folder of the newest one that is whole, None where none was kept.
    """

    steps: int
    seconds: float
    steps_per_second: float
    units_per_second: float
    unit: str
    first: dict[str, float]
    last: dict[str, float]
    test: dict[str, float]
    state: State
    notes: tuple[str, ...] = ()
    finished: bool = True
    checkpoint: Path | None = None

    def __repr__(self) -> str:
        told = self.test or self.last
        metrics = ", ".join(f"{name} {number_text(value)}" for name, value in told.items())
        end = "" if self.finished else ", stopped before its last step"
        return one_line(
            f"<Outcome {self.steps} steps in {seconds_text(self.seconds)}: {metrics}{end}>"
        )

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "train", "model": repr(self), **self.record()})

    def record(self) -> dict:
        """The outcome as one JSON-ready dict, without the arrays."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "steps_per_second": self.steps_per_second,
            f"{self.unit}_per_second": self.units_per_second,
            **{f"first_{name}": value for name, value in self.first.items()},
            **{f"last_{name}": value for name, value in self.last.items()},
            **{f"test_{name}": value for name, value in self.test.items()},
            "notes": list(self.notes),
            "finished": self.finished,
            "checkpoint": None if self.checkpoint is None else str(self.checkpoint),
        }


class TrainingStopped(RequestError):
    """Training that an error ended in the middle; its cause is that error.

    Attributes:
        outcome: what was trained until then, its state with it.
    """

    def __init__(self, sentence: str, outcome: Outcome):
        super().__init__(sentence)
        self.outcome = outcome
