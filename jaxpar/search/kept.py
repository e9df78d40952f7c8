"""What searches found, kept on disk: the same question goes on where the last one stopped.

A question is known by the model's trace, the devices, the hardware with all its figures, what the
person has set, and the versions that compile: whatever of that changes, it is another question.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxpar.case import Resolved
from jaxpar.step.record import Step


def key_of(asked: Resolved, step: Step, devices: int, layouts: Iterable[str] | None = None) -> str:
    """The name of a question.

    Args:
        asked: the question, resolved on one device.
        step: of it, whose traced loss is what the model computes.
        devices: how many there are.
        layouts: that are to be chosen among, if not all.
    """
    about = [
        str(step.asked.loss.closed), repr(asked.hardware), repr(asked.training), devices,
        layouts and sorted(layouts),
        sorted((name, repr(value)) for name, value in asked.case.set.items()), asked.case.mode,
        asked.layout.model.batch_size, jax.__version__, version("jaxlib"), _own_version(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:32]


def _own_version() -> str:
    """Of jaxpar: the newest change of its files, since a repository is run as it stands."""
    files = Path(__file__).parents[1].rglob("*.py")
    return str(max(file.stat().st_mtime_ns for file in files))


class Kept:
    """The file of one question; where it cannot be written, nothing is kept."""

    def __init__(self, folder: Path | None, key: str):
        self.file = folder and folder / f"{key}.json"
        self.found: dict[str, Mapping[str, Any]] = {}
        self.about: dict[str, Any] = {}
        self.spent_seconds = 0.0
        with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            record = json.loads(self.file.read_text()) if self.file else {}
            self.found = dict(record["found"])
            self.about = dict(record["about"])
            self.spent_seconds = float(record["spent_seconds"])

    def save(self) -> None:
        """Write what is known, whole or not at all."""
        if self.file is None:
            return
        record = {
            "about": self.about, "found": self.found, "spent_seconds": self.spent_seconds
        }  # fmt: skip
        fresh = self.file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            fresh.write_text(json.dumps(record))
            fresh.replace(self.file)
