"""The files of one run in a folder: its metrics and its checkpoints, numbered alike.

The first run of a folder has `metrics.jsonl` and `checkpoints`, the second `metrics-2.jsonl` and
`checkpoints-2`: none empties what another has written.
"""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from jaxpar.runtime.checkpoint.folder import run_folder, run_numbers, told_unread


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    metrics: Path
    checkpoints: Path

    @classmethod
    def numbered(cls, folder: Path, number: int) -> "RunFiles":
        """Those of the run of this number in a folder, from 1 up."""
        end = "" if number == 1 else f"-{number}"
        return cls(folder / f"metrics{end}.jsonl", run_folder(folder, number))

    @classmethod
    def fresh(cls, folder: Path) -> "RunFiles":
        """Those of the next run: after all that have checkpoints there, be the first ones gone."""
        several = (cls.numbered(folder, number) for number in count(1 + _last(folder)))
        return next(one for one in several if not one.is_used())

    def is_used(self) -> bool:
        """Whether a run has written anything there."""
        with told_unread(self.metrics.parent):
            has_rows = self.metrics.exists() and self.metrics.stat().st_size > 0
            return has_rows or self.checkpoints.exists()

    @classmethod
    def newest(cls, folder: Path) -> "RunFiles | None":
        """Those of the last run, be it one that has no checkpoint yet; None if there was none."""
        number = _last(folder)
        return cls.numbered(folder, number) if number else None


def _last(folder: Path) -> int:
    """The number of the last run that has checkpoints in a folder, 0 if none has."""
    return max(run_numbers(folder), default=0)
