"""Scopes that say what a part of a compiled program is: their names, written and read here.

One is around the gather of a weight, one around the work of a pipeline's tick. In a weight's name
letters, digits and `_` of its path stand as they are and `/` is a dot; of anything else, which
compilers may read in their own way, the code point stands between hyphens.
"""

import re
from contextlib import AbstractContextManager

import jax

WEIGHT = re.compile(r"weight\(([\w.\-]+)\)", re.ASCII)
"""The scope, as it stands in the name of an operation."""

TICK = "tick"
"""The scope of the conditional by which each stage of a pipeline does its own work of a tick."""

_CODED = re.compile(r"-([0-9a-f]+)-")
_OTHER = re.compile(r"[^\w/]", re.ASCII)


def weight_scope(path: str) -> AbstractContextManager:
    """The scope in which the weight of this path is gathered."""
    return jax.named_scope(_written(path))


def weight_in(op_name: str) -> str | None:
    """The path of the weight that an operation of this name gathers; None where it gathers none.

    >>> weight_in(f"jit(update)/{_written('a-b/kernel.0')}/reshard")
    'a-b/kernel.0'
    """
    found = WEIGHT.search(op_name)
    if found is None:
        return None
    return _CODED.sub(lambda code: chr(int(code[1], 16)), found[1].replace(".", "/"))


def _written(path: str) -> str:
    """The name of the scope of a path.

    >>> _written("blocks/up")
    'weight(blocks.up)'
    """
    coded = _OTHER.sub(lambda other: f"-{ord(other[0]):x}-", path)
    return f"weight({coded.replace('/', '.')})"
