"""Records as JSON: with a schema's number, what made them and when; older ones are read as they are
now, newer ones refused.
"""

import json
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxpar.core.errors import RequestError, words_of

SCHEMA = 2
"""The form that records have now. Whoever renames or takes away an entry raises it, and adds to
`UPGRADES` how a record of the form before becomes one of this."""

MOST_BYTES = 2**29
"""Of a file of records: a device would be read until no memory is left."""

PACKAGES = ("jaxpar", "jax", "jaxlib", "flax", "optax", "numpy")

KINDS = {
    "inspect": ("collectives", "arrays"),
    "compare": ("layouts",),
    "verify": ("checks",),
    "run": ("claims", "rows"),
    "train": ("steps", "finished"),
    "predict": ("step_seconds", "work_seconds"),
    "search": ("candidates", "considered"),
    "scale": ("points", "turning_points"),
}
"""What a record of each kind has; the first that fits is what one without a kind is."""


def stamped(record: Mapping[str, Any], kind: str, command: str) -> dict[str, Any]:
    """A record with its schema, its kind and where it comes from.

    Args:
        record: JSON-ready.
        kind: the verb that made it.
        command: as it was typed.
    """
    about = {
        "command": command,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    return {"schema": SCHEMA, "kind": kind, **strict(record), "about": about}


def strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, Mapping):
        return {name: strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of what makes a record, without what is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file, or of a run folder, as they are today.

    Args:
        path: JSON with one record or several, a run's metrics or an experiment's rows (one JSON a
            line), or a folder of such files.

    Raises:
        RequestError: for what is not there, is no JSON, or no record of jaxpar.
    """
    if path.is_dir():
        files = sorted((*path.glob("*.json"), *path.glob("*.jsonl")))
        if not files:
            raise RequestError(f"{path}: no record in this folder: name one that a run has written")
        return [record for file in files for record in read(file)]
    values = list(_values(path))
    if not values:
        raise RequestError(f"{path} is empty: name a file that --json or a run has written")
    if path.suffix == ".jsonl" or "step" in values[0]:
        return [_of_lines(path, values)]
    return [completed(upgraded(value, str(path)), path.parent) for value in values]


@contextmanager
def as_written(names: Iterable[str]) -> Iterator[None]:
    """Within, records are used, and one that is not as jaxpar writes them is refused.

    Files come from anywhere: one that has a record's names may hold anything under them.

    Args:
        names: of the files.
    """
    try:
        yield
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RequestError(
            f"{', '.join(names)}: not as jaxpar writes records ({words_of(error)}): name what "
            "--json printed"
        ) from error


def completed(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A record of training with its curves, where the file of its metrics is still there.

    Args:
        record: of any kind.
        folder: from which a relative name leads on, if it does not from here.
    """
    named = record.get("metrics")
    if not isinstance(named, str) or "curve" in record:
        return dict(record)
    places = (Path(named), folder / named, folder / Path(named).name)
    file = next((place for place in places if place.is_file()), None)
    return {**record, **({} if file is None else {"curve": _curve(list(_values(file)))})}


def upgraded(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A record in the form that records have now.

    Args:
        record: as it was read.
        name: what a refusal calls it.

    Raises:
        RequestError: for a newer form, or for what is no record.
    """
    schema = record.get("schema", 0)
    if type(schema) is not int or schema < 0:  # to Python, True is the number 1
        raise RequestError(f"{name}: its schema is {schema!r}, and a schema is a whole number")
    if schema > SCHEMA:
        raise RequestError(
            f"{name} was written by a newer jaxpar: it has schema {schema}, and this one reads up "
            f"to {SCHEMA}: pip install --upgrade jaxpar"
        )
    for number in range(schema, SCHEMA):
        record = UPGRADES[number](record)
    if record.get("kind") is None:
        raise RequestError(
            f"{name} is no record of jaxpar: name what inspect, compare, verify, train or run "
            "printed with --json"
        )
    return dict(record)


def _from_0(record: Mapping[str, Any]) -> dict[str, Any]:
    """Records that did not say what they are, by what they have."""
    kind = next((k for k, names in KINDS.items() if all(n in record for n in names)), None)
    return {**record, "schema": 1, "kind": kind}


def _from_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """Records whose findings had the name of the measure, and no sentence of their own."""
    return {**_with_findings(record), "schema": 2}


def _with_findings(value: Any) -> Any:
    """A part of such a record, the findings of each inspection in it as they are now."""
    if isinstance(value, list | tuple):
        return [_with_findings(entry) for entry in value]
    if not isinstance(value, Mapping):
        return value
    made = {name: _with_findings(entry) for name, entry in value.items()}
    if isinstance(found := value.get("lint"), list) and "findings" not in value:
        made["findings"] = [
            {**one, "sentence": ": ".join(one[part] for part in ("where", "says", "repair"))}
            for one in found
        ]
    return made


UPGRADES: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {0: _from_0, 1: _from_1}
"""Schema -> what makes of its records those of the next."""


def _values(path: Path) -> Iterator[dict[str, Any]]:
    """Every JSON object of a file, one after another; a last line that was cut is left out."""
    try:
        text = _text(path)
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: cannot read it ({words_of(error)})") from error
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if path.suffix == ".jsonl" and "\n" not in text[at:]:
                return
            raise RequestError(f"{path} is no JSON ({words_of(error)})") from error
        if not isinstance(value, dict):
            raise RequestError(f"{path}: a record is a JSON object, and this has another value")
        yield value


def _text(path: Path) -> str:
    """The text of a file, or of a pipe; ValueError for one that goes on and on, or is no text."""
    with path.open("rb") as file:
        found = file.read(MOST_BYTES + 1)
    if len(found) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes, and no record is as long")
    return found.decode("utf-8")


def _of_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record that a file of one JSON a line stands for: a run's metrics, or rows."""
    name = path.resolve().parent.name
    if "step" in values[0]:
        return {"schema": SCHEMA, "kind": "train", "model": name, "curve": _curve(values)}
    if "strategy" in values[0]:
        return {"schema": SCHEMA, "kind": "run", "experiment": name, "rows": list(values)}
    raise RequestError(f"{path}: these lines are neither a run's metrics nor an experiment's rows")


def _curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Metric -> step -> its value."""
    found: dict[str, dict[int, float]] = {}
    for line in lines:
        step = line.get("step")
        for name, value in line.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if name != "step" and is_number and isinstance(step, int):
                found.setdefault(name, {})[step] = value
    return found
