"""What the metadata of a checkpoint looks like: each field's kind, before anybody reads it.

A checksum finds damage; whoever writes a file can also write its checksum. What is read here may
come from anywhere, so nothing is taken for what it should be.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.core.kinds import MOST_COUNT
from jaxpar.core.mesh import MeshShape

MOST_BYTES = 2**63 - 1
"""Of an array, and the longest dim of one."""

_DIGEST = re.compile(r"[0-9a-f]{16}")

_SAID = {"strategy", "mesh", "devices", "batch", "mode", "microbatches", "hardware"}
"""What is said of every layout."""


def fault_of(record: Mapping[str, Any]) -> str | None:
    """Why a record, its checksum apart, is no metadata; None if it is.

    >>> fault_of({"step": 3})
    "it has no 'arrays'"
    """
    for name in sorted(_FIELDS.keys() | record.keys()):
        if name not in record:
            return f"it has no '{name}'"
        if name not in _FIELDS:
            return f"it has '{name}', which this format has not"
    for name, is_right in _FIELDS.items():
        if not is_right(record[name]):
            return f"its '{name}' is not of the kind that is written there"
    for name, array in record["arrays"].items():
        if not _is_array(array):
            return f"what it says of '{name}' is not of the kind that is written there"
    if record["data"].get("next_batch", record["step"]) < record["step"]:
        return "its 'next_batch' is before its step"
    return None


def _is_whole(value: Any, least: int = 0, most: int = MOST_COUNT) -> bool:
    """Whether a value is a whole number in these bounds; true is none."""
    return type(value) is int and least <= value <= most


def _is_word(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def _is_plain(value: Any) -> bool:
    """Whether a value is text, a number, true, false or null."""
    return value is None or type(value) in (str, bool, float) or _is_whole(value, -MOST_BYTES)


def _is_number(value: Any) -> bool:
    """Whether a value is a number, be it none that is finite."""
    return type(value) is float or _is_whole(value, -MOST_BYTES, MOST_BYTES)


def _all(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a mapping, all values of which are right."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    """Whether a value is a list, all entries of which are right."""
    return isinstance(value, list) and all(map(is_right, value))


def _is_shape(value: Any) -> bool:
    """Whether a value is an array's shape."""
    return _is_list(value, lambda size: _is_whole(size, 0, MOST_BYTES))


def _is_layout(value: Any) -> bool:
    """Whether a value says of a layout what is needed to make it again."""
    if not _all(_is_plain)(value) or not value.keys() >= _SAID:
        return False
    counts = (value[name] for name in ("devices", "batch", "microbatches"))
    words = (value[name] for name in ("strategy", "mesh", "mode", "hardware"))
    if not all(_is_whole(n, 1) for n in counts) or not all(map(_is_word, words)):
        return False
    try:
        MeshShape.parse(value["mesh"])
    except RequestError:
        return False
    return True


def _is_training(value: Any) -> bool:
    """Whether a value is the fields of a training; of none there are none."""
    return _all(_is_plain)(value) and (not value or _is_whole(value.get("seed"), 0, 2**32 - 1))


def _is_data(value: Any) -> bool:
    """Whether a value says what was read, or at least up to where."""
    if not isinstance(value, dict) or not _is_whole(value.get("next_batch", 0)):
        return False
    if not {"name", "fields"} & value.keys():
        return value.keys() <= {"next_batch"}
    fields, words = value.get("fields"), (value.get("name"), value.get("fingerprint", ""))
    return all(map(_is_word, words)) and _all(_is_field)(fields)


def _is_field(value: Any) -> bool:
    """Whether a value is the shape and the dtype of a field of data."""
    return (
        isinstance(value, list) and len(value) == 2 and _is_shape(value[0]) and _is_word(value[1])
    )


def _is_array(value: Any) -> bool:
    """Whether a value is what is said of one array."""
    if not isinstance(value, dict):
        return False
    digest, sharded = value.get("digest"), value.get("sharded")
    return (
        _is_shape(value.get("shape"))
        and _is_word(value.get("dtype"))
        and _is_whole(value.get("bytes"), 0, MOST_BYTES)
        and _is_list(sharded, lambda axes: _is_list(axes, _is_word))
        and isinstance(digest, str)
        and _DIGEST.fullmatch(digest) is not None
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "format": _is_whole,
    "step": _is_whole,
    "model": _is_word,
    "layout": _is_layout,
    "training": _is_training,
    "data": _is_data,
    "metrics": _all(_is_number),
    "versions": _all(_is_word),
    "arrays": lambda value: isinstance(value, dict) and bool(value),
}
