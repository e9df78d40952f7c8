"""Scopes that say what a part of a compiled program is: their names, written and read here.

One is around the gather of a weight, two around the work of a pipeline's tick, one around what its
last stage hands to all, one around what stages hand to neighbours. In a weight's name
letters, digits and `_` of its path stand as they are and `/` is a dot; of anything else, which
compilers may read in their own way, the code point stands between hyphens.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import jax

WEIGHT = re.compile(r"weight\(([\w.\-]+)\)", re.ASCII)
"""The scope, as it stands in the name of an operation."""

TICK = re.compile(r"/tick\((\d{1,18});([1-9]\d{0,17})\)/")
"""The scope of the work that stages of a pipeline do in a tick, and others do not."""

TURNS = re.compile(r"/turns\((\d{1,18});([1-9]\d{0,17})\)/while$")
"""The scope of a loop of which is known how often it turns, on average over devices."""

TAKEN = re.compile(r"(?:^|/)taken\((\d{1,18}(?:,\d{1,18})*);([1-9]\d{0,17})\)/cond$")
"""The scope of a conditional of which is known how often each branch is taken."""

TO_ALL = "to_all_stages"
"""The scope in which the last stage's activation goes to all, to compute the loss together."""

MESSAGE = re.compile(r"/message\((onward|back|both)\)/")
"""The scope of what stages of a pipeline hand to their neighbours after a tick."""

ONWARD, BACK, BOTH = "onward", "back", "both"
"""Activations to the next stage; gradients to the one before; from some the one, from some the
other."""

_CODED = re.compile(r"-([0-9a-f]+)-")
_OTHER = re.compile(r"[^\w/]", re.ASCII)


def weight_scope(path: str) -> AbstractContextManager:
    """The scope in which the weight of this path is gathered."""
    return jax.named_scope(_written(path))


def tick_scope(busy: int, total: int) -> AbstractContextManager:
    """The scope of a tick's work, in which of so many stages so many are busy."""
    return jax.named_scope(f"tick({busy};{total})")


def turns_scope(turns: int, total: int) -> AbstractContextManager:
    """The scope of a loop that is run `total` times by all devices, and turns so often in all."""
    return jax.named_scope(f"turns({turns};{total})")


def taken_scope(times: Sequence[int], total: int) -> AbstractContextManager:
    """The scope of a conditional whose branches, in order, are taken so often of a total."""
    return jax.named_scope(f"taken({','.join(map(str, times))};{total})")


def to_all_scope() -> AbstractContextManager:
    """The scope in which the last stage of a pipeline hands its activation to all stages."""
    return jax.named_scope(TO_ALL)


def message_scope(way: str) -> AbstractContextManager:
    """The scope in which stages hand something to neighbours: ONWARD, BACK or BOTH."""
    return jax.named_scope(f"message({way})")


def way_of(op_name: str) -> str:
    """The way of the message that an operation of this name sends; "" where it sends none.

    >>> way_of("jit(update)/shard_map/while/body/message(back)/ppermute")
    'back'
    """
    found = MESSAGE.search(op_name)
    return found[1] if found else ""


def is_to_all(op_name: str) -> bool:
    """Whether an operation of this name hands the last stage's activation to all stages.

    >>> is_to_all("jit(update)/shard_map/to_all_stages/psum_invariant")
    True
    """
    return TO_ALL in op_name.split("/")


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
