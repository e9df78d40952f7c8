"""The files of one run in a folder: its metrics and its checkpoints, numbered alike.

The first run of a folder has `metrics.jsonl` and `checkpoints`, the second `metrics-2.jsonl` and
`checkpoints-2`: none empties what another has written.
"""

import re
from dataclasses import dataclass
from itertools import count
from pathlib import Path


@dataclass(frozen=True)
class RunFiles:
    """Where a run writes."""

    metrics: Path
    checkpoints: Path

    @classmethod
    def numbered(cls, folder: Path, number: int) -> "RunFiles":
        """Those of the run of this number in a folder, from 1 up."""
        end = "" if number == 1 else f"-{number}"
        return cls(folder / f"metrics{end}.jsonl", folder / f"checkpoints{end}")

    @classmethod
    def fresh(cls, folder: Path) -> "RunFiles":
        """Those of the next run."""
        several = (cls.numbered(folder, number) for number in count(1))
        return next(one for one in several if not one.is_used())

    def is_used(self) -> bool:
        """Whether a run has written anything there."""
        has_rows = self.metrics.exists() and self.metrics.stat().st_size > 0
        return has_rows or self.checkpoints.exists()

    @classmethod
    def newest(cls, folder: Path) -> "RunFiles | None":
        """Those of the last run, be it one that has no checkpoint yet; None if there was none."""
        names = [one.name for one in folder.iterdir()] if folder.is_dir() else []
        found = [re.fullmatch(r"checkpoints(?:-(\d{1,9}))?", name) for name in names]
        numbers = [int(match[1] or 1) for match in found if match]
        return cls.numbered(folder, max(numbers)) if numbers else None
