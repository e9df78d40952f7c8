"""Which line of a person's own code asked for an operation, or raised an error.

A line in Flax's `Linear` is true and of no use. So the files of the libraries that a model is
written with are passed over, and jaxpar's too; those of a catalogue model are not, since whoever
runs it reads them as the model.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from traceback import walk_tb
from typing import Any

from jaxpar.core.jax_compat import traced_at

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose lines say nothing about a model."""

CALLED_BY_MODELS = ("core", "attention")
"""Rooms of jaxpar whose functions a model calls; the other rooms call the model."""

_JAXPAR = os.path.realpath(Path(__file__).parents[1]) + os.sep
_PYTHON = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
_INSTALLED = ("site-packages", "dist-packages")


def line_of(source_info: Any) -> str:
    """The line that asked for an operation, as "file:line:column (function)"; "" if jaxpar did.

    Args:
        source_info: of an equation, or JAX's current one.
    """
    return _line_of(source_info.traceback)


@lru_cache(maxsize=1 << 14)
def _line_of(traceback: Any) -> str:
    """The same of a traceback of JAX's; each way to evaluate a jaxpr asks it of every equation."""
    frames = list(traced_at(traceback))
    index = own_file(code.co_filename for code, _ in frames)
    if index is None:
        return ""
    code, offset = frames[index]
    line, _, column, _ = next(islice(code.co_positions(), offset // 2, None))
    at = f"{line}:{column}" if column else f"{line}"
    return f"{code.co_filename}:{at} ({code.co_qualname})"


def file_and_line(line: str) -> str:
    """The "file:line" of a line as `line_of` gives it.

    >>> file_and_line("/home/me/net.py:12:8 (Net.__call__)")
    '/home/me/net.py:12'
    """
    file, _, rest = line.rpartition(".py:")
    number = rest.split(":")[0].split(" ")[0]
    return f"{file}.py:{number}" if file else line


def line_of_error(error: BaseException | None) -> str:
    """The innermost line of a person's own code that an error passed, as "file:line"; "" if none.

    A line of an installed package is told only where there is no other.
    """
    frames = [
        (frame.f_code.co_filename, line) for frame, line in walk_tb(error and error.__traceback__)
    ]
    own = [(file, line) for file, line in frames if is_own(file)]
    written = [(file, line) for file, line in own if not set(_INSTALLED) & set(Path(file).parts)]
    return "{}:{}".format(*(written or own)[-1]) if own else ""


def passed_own_code(error: BaseException) -> bool:
    """Whether an error passed a person's own code, called by what works with models.

    The command line and the data call libraries of their own, whose errors are ours.
    """
    room = ""
    for frame, _ in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not _room(file) and is_own(file):
            return room not in ("", "cli", "data")
        room = _room(file) or room
    return False


def own_file(files: Iterable[str]) -> int | None:
    """Which file of a stack, innermost first, is a person's; None if jaxpar, not a model, asked."""
    for index, file in enumerate(files):
        if is_own(file):
            return index
        if _room(file) and _room(file) not in CALLED_BY_MODELS:
            return None
    return None


def is_own(file: str) -> bool:
    """Whether a file is a person's or a catalogue model's: no library's, Python's or jaxpar's."""
    return _room(file) == "models" if _room(file) else not is_library(file)


@cache
def is_library(file: str) -> bool:
    """Whether a file is Python's own or of a library that models are written with."""
    path = os.path.realpath(file)
    if path.startswith(_library_folders()) or file.startswith("<frozen "):
        return True
    # Without a virtual environment, what is installed is among Python's own files.
    return path.startswith(_PYTHON) and path[len(_PYTHON) :].split(os.sep)[0] not in _INSTALLED


@cache
def _room(file: str) -> str:
    """The room of jaxpar that a file is in; "" for a file that is not jaxpar's."""
    path = os.path.realpath(file)
    return path[len(_JAXPAR) :].split(os.sep)[0] if path.startswith(_JAXPAR) else ""


@cache
def _library_folders() -> tuple[str, ...]:
    """The folders of those libraries that are installed, found without importing any."""
    specs = [find_spec(name) for name in LIBRARIES]
    origins = [spec.origin for spec in specs if spec and spec.origin]
    return tuple(os.path.realpath(Path(origin).parent) + os.sep for origin in origins)
