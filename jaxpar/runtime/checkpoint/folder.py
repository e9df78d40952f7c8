"""The checkpoints in a folder, read from its files alone: no device is needed, nor Orbax."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxpar.core.errors import RequestError, words_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata

METADATA = "jaxpar"
"""The item of a checkpoint that has its metadata."""


@dataclass(frozen=True)
class OnDisk:
    """One checkpoint: its folder, and the step that the folder's name says."""

    folder: Path
    step: int

    def metadata(self) -> Metadata:
        """What it says of itself.

        Raises:
            DamagedCheckpoint: when that cannot be read, or is not what was written.
        """
        file = self.folder / METADATA / "metadata"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(
                f"checkpoint {self.folder}: cannot read its metadata ({words_of(error)})"
            ) from error
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DamagedCheckpoint(f"checkpoint {self.folder}: its metadata is no JSON") from error
        found = Metadata.of(record, str(self.folder))
        if found.step != self.step:
            raise DamagedCheckpoint(
                f"checkpoint {self.folder}: it is of step {found.step}, and its folder says "
                f"{self.step}"
            )
        return found


def checkpoints_in(folder: str | Path) -> list[OnDisk]:
    """The checkpoints of a run, newest first; none where there is no such folder.

    What was being written when a process ended has another name, and is none.
    """
    folder = Path(folder)
    try:
        inside = list(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise RequestError(
            f"checkpoints {folder}: cannot read there ({words_of(error)})"
        ) from error
    found = [OnDisk(one, int(one.name)) for one in inside if is_step(one)]
    return sorted(found, key=lambda one: one.step, reverse=True)


def is_step(folder: Path) -> bool:
    """Whether a folder's name is that of a checkpoint: its step."""
    return (
        folder.name.isascii()
        and folder.name.isdigit()
        and len(folder.name) < 19
        and folder.is_dir()
    )


def one_of(path: str | Path) -> list[OnDisk]:
    """The checkpoints that a path names, newest first: one, a folder of them, or that of a run."""
    path = Path(path)
    inside = checkpoints_in(path)
    if is_step(path) and not inside:
        return [OnDisk(path, int(path.name))]
    runs = [] if inside or not path.is_dir() else path.glob("checkpoints*")
    last = max(runs, key=lambda folder: (len(folder.name), folder.name), default=None)
    return inside if last is None else checkpoints_in(last)
