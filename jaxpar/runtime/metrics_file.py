"""The metrics of a run as JSON lines: appended while it trains, cut back where it goes on from."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax

from jaxpar.core.errors import RequestError, expect, words_of


def writer(path: str | Path | None) -> Callable[[dict], None]:
    """A function that appends a row as a JSON line to a file; nothing without a path."""
    if path is None or jax.process_index() != 0:
        return lambda row: None
    expect("train's metrics_file", path, str | Path, "name a file")
    file = Path(path)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a", encoding="utf-8").close()  # refused now rather than after the first step
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise RequestError(
            f"metrics file {file}: cannot write there ({words_of(error)}); name another"
        ) from error

    def write(row: dict) -> None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    return write


def cut_back(file: Path, step: int) -> None:
    """Take the rows of later steps out of a file of metrics, and a last row that is half written.

    A run that was killed has told of steps that no checkpoint has; it will train them again. Lines
    that are no rows stay, as somebody else has written them.
    """
    if jax.process_index() != 0:
        return
    other = file.with_name(f"{file.name}.new")
    try:
        if not file.is_file():
            return
        other.unlink(missing_ok=True)  # be it a link that leads out of the folder
        with file.open("rb") as before, other.open("xb") as after:
            after.writelines(line for line in before if not _is_later(line, step))
        os.replace(other, file)
    except OSError as error:
        raise RequestError(
            f"metrics file {file}: cannot write there ({words_of(error)})"
        ) from error


def _is_later(line: bytes, step: int) -> bool:
    """Whether a line is a row of a later step, or half a row."""
    with suppress(ValueError, TypeError, LookupError, RecursionError):
        return json.loads(line)["step"] > step
    return not line.endswith(b"\n")
