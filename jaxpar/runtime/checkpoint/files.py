"""The files of a checkpoint, looked at before anybody opens them.

A pipe would be waited for, a device read without end, and a file that says it has a terabyte be
made room for: none of them is what was written.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from jaxpar.core.errors import words_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint

MOST_TEXT_BYTES = 2**28
"""Of a file that is read whole, such as metadata, which has some hundred bytes for an array."""

READ_WHOLE = ("metadata", "_METADATA", "_CHECKPOINT_METADATA", "_sharding", "manifest.ocdbt",
              "zarr.json", ".zarray")  # fmt: skip


def text_of(file: Path) -> str:
    """The text of a file of a checkpoint.

    Raises:
        OSError, ValueError: when there is no such regular file of a fair size, or it is no text.
    """
    if fault := _fault_of(file):
        raise ValueError(fault)
    return file.read_text(encoding="utf-8")


def check_files(folder: Path) -> None:
    """Refuse a checkpoint that has anything in it but folders and regular files.

    A link to a file is followed, as where files are kept by their digest; one to a folder is not.

    Raises:
        DamagedCheckpoint: naming the first.
    """
    try:
        fault = next(_faults(folder), None)
    except (OSError, RecursionError) as error:
        fault = words_of(error)
    if fault:
        raise DamagedCheckpoint(f"checkpoint {folder}: cannot be read ({fault})")


def _faults(folder: Path) -> Iterator[str]:
    """What is wrong with the files in a folder and in those below it."""
    with os.scandir(folder) as inside:
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                yield from _faults(Path(entry.path))
            elif fault := _fault_of(Path(entry.path)):
                yield f"{entry.name}: {fault}"


def _fault_of(file: Path) -> str:
    """Why a file is none that was written, "" if it is one; OSError for what the system says."""
    found = file.stat()
    if stat.S_ISDIR(found.st_mode):
        return "it is a link to a folder" if file.is_symlink() else "it is a folder"
    if not stat.S_ISREG(found.st_mode):
        return "it is no regular file"
    if file.name in READ_WHOLE and found.st_size > MOST_TEXT_BYTES:
        return f"it has {found.st_size:,} bytes, which is more than is ever written there"
    return ""
