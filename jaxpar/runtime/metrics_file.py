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

    A run that was killed has told of steps that no checkpoint has; it will train them again.
    """
    if jax.process_index() != 0 or not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    other = file.with_name(f"{file.name}.new")
    try:
        other.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(other, file)
    except OSError as error:
        raise RequestError(
            f"metrics file {file}: cannot write there ({words_of(error)})"
        ) from error
