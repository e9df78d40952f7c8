"""What an integer of a partitioned program comes to on each device, computed from the device's id.

Code per shard tells devices apart by such numbers: an index along a mesh axis, where a shard
begins, whether a row of a table is a device's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from jaxpar.hlo.parse import Instruction
from jaxpar.hlo.shardings import varying_over

_DIRECTION = re.compile(r"direction=(\w+)")
_TRUTHS = {"true": 1, "false": 0}
_LARGEST = 2**31
"""Numbers beyond it are not followed: a type of 32 bits would wrap."""


def number_on_each(
    i: Instruction, given: Sequence[np.ndarray | None], devices: int
) -> np.ndarray | None:
    """The integer that an instruction gives on each device, (devices,); None where that is unknown.

    A constant of one dim is a table: its numbers, (length,).

    Args:
        i: an instruction.
        given: the same of its operands.
        devices: how many there are, numbered by partition.
    """
    kind, shape = i.shapes[0] if len(i.shapes) == 1 else ("", ())
    if not kind.startswith(("s", "u", "pred")):
        return None
    if i.opcode == "partition-id":
        return np.arange(devices)
    if i.opcode == "constant":
        return _constant(i.arguments, shape, devices)
    if prod(shape) != 1 or not given or any(row is None for row in given):
        return None
    rows = [row for row in given if row is not None]
    if i.opcode == "dynamic-slice" and len(rows) == 2:
        table, start = rows
        return table[np.clip(start, 0, len(table) - 1)]
    rule = _compared(i) if i.opcode == "compare" else _RULES.get(i.opcode)
    if rule is None or any(len(row) != devices for row in rows):
        return None
    if i.opcode in ("divide", "remainder") and not (rows[1] > 0).all():
        return None
    made = np.asarray(rule(*rows), dtype=np.int64)
    least = 0 if kind.startswith("u") else -_LARGEST
    return made if ((made >= least) & (made < _LARGEST)).all() else None


def own_shard(
    starts: np.ndarray, size: int, whole: int, axis_sizes: Mapping[str, int]
) -> frozenset[str] | None:
    """The mesh axes over which a dim is sharded by slices of it; None where they are no shards.

    Args:
        starts: where each device's slice begins.
        size: of a slice.
        whole: of the dim.
        axis_sizes: the mesh, outermost axis first.
    """
    axes = varying_over(starts, axis_sizes)
    ways = prod(axis_sizes[axis] for axis in axes)
    is_all = sorted(set(starts.tolist())) == [n * size for n in range(ways)]
    return axes if axes and is_all and ways * size == whole else None


def _constant(text: str, shape: Sequence[int], devices: int) -> np.ndarray | None:
    """The numbers of a constant: one on every device, or a table."""
    words = [word.strip() for word in text.strip("{} ").split(",")]
    numbers = [_TRUTHS.get(word, word) for word in words]
    if len(shape) > 1 or not all(re.fullmatch(r"-?\d{1,10}", str(n)) for n in numbers):
        return None
    row = np.array([int(n) for n in numbers], dtype=np.int64)
    if prod(shape) == 1:
        return np.repeat(row[:1], devices)
    return row if len(row) == shape[0] else None


def _compared(i: Instruction) -> Callable[..., np.ndarray] | None:
    """How a comparison compares."""
    found = _DIRECTION.search(i.attributes)
    return _COMPARES.get(found[1]) if found else None


_COMPARES = {
    "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal,
}  # fmt: skip

_RULES: dict[str, Callable[..., np.ndarray]] = {
    **dict.fromkeys(("convert", "copy", "reshape", "bitcast", "broadcast"), lambda a: a),
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.floor_divide,
    "remainder": np.remainder,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "negate": np.negative,
    "shift-left": lambda a, b: np.left_shift(a, np.clip(b, 0, 31)),
    "shift-right-logical": lambda a, b: np.right_shift(a, np.clip(b, 0, 31)),
    "select": lambda truth, yes, no: np.where(truth != 0, yes, no),
    "clamp": lambda low, a, high: np.clip(a, low, high),
}
