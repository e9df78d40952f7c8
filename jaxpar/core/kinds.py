"""What kind of thing a setting is, and the sentence that refuses a value of another kind.

The kind is the annotation of a record's field or of a function's argument: `int`, `float`, `bool`,
`str`, or one of them or None. Whatever else is annotated takes anything.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jaxpar.core.errors import RequestError

MOST = 2**32 - 1
"""The largest whole number of a setting, and so the largest seed, which JAX takes 32 bits of."""

MOST_COUNT = 2**31 - 1
"""The largest count of steps or rows: JAX counts them in 32 bits, one of which is the sign."""

LEAST_FLOAT, MOST_FLOAT = 1.1754944e-38, 3.4028235e38
"""The smallest and the largest normal number of float32, in which devices have a setting."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


def fitting(name: str, kind: Any, value: Any, usual: Any = MISSING, called: str = "") -> Any:
    """`value` as the kind of setting that `name` is, a whole number as a fraction where it is one.

    Args:
        name: of the setting.
        kind: its annotation.
        value: what was said.
        usual: its default, for the sentence.
        called: what to put before the name in the sentence, such as "--set ".

    Raises:
        RequestError: for another kind, a number that is not finite, or a count beyond `MOST`.

    >>> fitting("rate", float, 1)
    1.0
    >>> fitting("kv_heads", int | None, None)
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    known = [k for k in kinds if k in _WORDS]
    if not known or (value is None and NoneType in kinds):
        return value
    for one in known:
        found = _as(one, value)
        if found is not None:
            if one is int and abs(found) > MOST:
                raise RequestError(f"{called}{name}={value}: {name} can be {MOST:,} at most")
            if one is float and found and not LEAST_FLOAT <= abs(found) <= MOST_FLOAT:
                raise RequestError(
                    f"{called}{name}={value}: {name} is 0 or from {LEAST_FLOAT:.2g} to "
                    f"{MOST_FLOAT:.2g} in size, which is what float32 holds"
                )
            return found
    default = "" if usual is MISSING else f" (its default is {usual})"
    rule = " or ".join([*(_WORDS[k] for k in known), *(["none"] if NoneType in kinds else [])])
    raise RequestError(f"{called}{name}={value}: {name} is {rule}{default}, and '{value}' is not")


def _as(kind: type, value: Any) -> Any:
    """The value as one of the four kinds, or None if it is none of it."""
    if kind in (bool, str) or isinstance(value, bool):
        return value if isinstance(value, kind) and (kind is not int) else None
    if kind is int:
        return _whole(value)
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    """The value as an int, if it is some library's whole number."""
    try:
        return operator.index(value)
    except TypeError:
        return None


def whole(name: str, value: Any, *, least: int = 0, most: int = MOST_COUNT) -> int:
    """`value` as a whole number from `least` to `most`; a RequestError for anything else."""
    number = None if isinstance(value, bool) else _whole(value)
    if number is None or not least <= number <= most:
        raise RequestError(f"{name}={value}: use a whole number from {least} to {most:,}")
    return number


def kinds_of(documented: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a record's fields, or of a function's arguments, by name."""
    return get_type_hints(documented)


def check_kinds(record: Any, where: str = "") -> None:
    """Check the fields of a record against their annotated types and the numbers that fit them.

    Args:
        record: a dataclass, frozen or not; a number of another type that means the same (1 for 1.0)
            is replaced by one of the annotated type.
        where: what to put before a field's name in the sentence, such as "mlp: ".
    """
    kinds = kinds_of(type(record))
    for f in fields(record):
        value = getattr(record, f.name)
        fits = fitting(f.name, kinds[f.name], value, f.default, where)
        if fits is not value:
            object.__setattr__(record, f.name, fits)
