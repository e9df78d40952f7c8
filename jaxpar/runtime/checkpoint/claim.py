"""A folder for the checkpoints of one run: made, looked through, and kept from other runs."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxpar.core.errors import RequestError, expect, words_of
from jaxpar.runtime.checkpoint.folder import METADATA

_STEP = re.compile(r"[0-9]+")
_SIGNS = (METADATA, "_CHECKPOINT_METADATA", "commit_success.txt")
"""What is in a checkpoint, be it damaged."""


def place_of(folder: str | Path) -> Path:
    """The whole path of a folder for checkpoints, which is there when this returns.

    Raises:
        RequestError: when it cannot be made or written in, or has in it what would be taken for
            old checkpoints and deleted.
    """
    expect("the checkpoints' folder", folder, str | Path, "name a folder")
    try:
        str(folder).encode()
        if not str(folder).strip() or re.match(r"(gs|s3|https?|file):/", str(folder)):
            raise ValueError("it is no folder of a file system")
        place = Path(folder).absolute()
        place.mkdir(parents=True, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError("permission denied")
        fault = next(filter(None, map(_fault_of, place.iterdir())), None)
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"checkpoints {folder}: cannot write there ({words_of(error)}); name another folder"
        ) from error
    if fault:
        raise RequestError(
            f"checkpoints {folder}: {fault}, and checkpoints have such names and are deleted when "
            "they are old: name a folder for them alone"
        )
    return place


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other run may lock the folder; that ends with the process however it ends.

    Where the file system has no locks of folders, nobody is kept out.

    Raises:
        RequestError: when another run has locked it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"checkpoints {folder}: another run writes there now: wait for its end, or name "
                "another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def _fault_of(entry: Path) -> str:
    """Why an entry of a folder is no checkpoint though it is named like one, "" for any other."""
    if not _STEP.fullmatch(entry.name):
        return ""
    if entry.is_symlink():
        return f"'{entry.name}' there is a link"
    if not entry.is_dir():
        return f"'{entry.name}' there is a file"
    inside = os.listdir(entry)
    return f"'{entry.name}' there is none" if inside and not set(_SIGNS) & set(inside) else ""
