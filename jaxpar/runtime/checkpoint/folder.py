"""The checkpoints in a folder, read from its files alone: no device is needed, nor Orbax."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxpar.core.errors import RequestError, words_of
from jaxpar.runtime.checkpoint.files import text_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata

METADATA = "jaxpar"
"""The item of a checkpoint that has its metadata."""

_STEP = re.compile(r"0|[1-9][0-9]{0,9}")
_RUN = re.compile(r"checkpoints(?:-([1-9][0-9]{0,9}))?")


@dataclass(frozen=True)
class OnDisk:
    """One checkpoint: its folder, and the step that the folder's name says."""

    folder: Path
    step: int

    def metadata(self) -> Metadata:
        """What it says of itself.

        Raises:
            DamagedCheckpoint: when that cannot be read, or is not what was written.
            OtherFormat: when another version wrote it.
        """
        file = self.folder / METADATA / "metadata"
        try:
            text = text_of(file)
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
    found = [OnDisk(one, int(one.name)) for one in _inside(folder) if is_step(one)]
    return sorted(found, key=lambda one: one.step, reverse=True)


def run_numbers(folder: Path) -> list[int]:
    """The numbers of the runs whose checkpoints are in a folder, as `checkpoints-2`, rising."""
    found = [_RUN.fullmatch(one.name) for one in _inside(folder)]
    return sorted(int(match[1] or 1) for match in found if match)


def run_folder(folder: Path, number: int) -> Path:
    """Where the checkpoints of the run of this number are, from 1 up."""
    return folder / ("checkpoints" if number == 1 else f"checkpoints-{number}")


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none."""
    with told_unread(folder):
        return list(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def told_unread(what: Path) -> Iterator[None]:
    """Within, what keeps this process from looking at a file or into a folder is one sentence."""
    try:
        yield
    except RequestError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise RequestError(f"checkpoints {what}: cannot read there ({words_of(error)})") from error


def is_step(folder: Path) -> bool:
    """Whether a folder's name is that of a checkpoint: its step."""
    with told_unread(folder):
        return bool(_STEP.fullmatch(folder.name)) and folder.is_dir()


def one_of(path: str | Path) -> list[OnDisk]:
    """The checkpoints that a path names, newest first: one, a folder of them, or that of a run."""
    path = Path(path)
    inside = checkpoints_in(path)
    if inside:
        return inside
    if is_step(path):
        return [OnDisk(path, int(path.name))]
    runs = run_numbers(path)
    return checkpoints_in(run_folder(path, runs[-1])) if runs else []
