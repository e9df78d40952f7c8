"""The sharding of an argument as a module's text has it: which mesh axes shard each of its dims."""

import re
from collections.abc import Mapping
from math import prod

import numpy as np

_SHARDING = re.compile(r"sharding=\{([^{}]*)\}")
_DEVICES = re.compile(r"devices=\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))")


def sharded_over(
    attributes: str, rank: int, axis_sizes: Mapping[str, int]
) -> tuple[frozenset[str], ...] | None:
    """The mesh axes that shard each dim; None for a spelling that is not understood, or none.

    Args:
        attributes: of a parameter.
        rank: how many dims it has.
        axis_sizes: the mesh, outermost axis first; partition ids count row-major over it.
    """
    found = _SHARDING.search(attributes)
    if found is None:
        return None
    if found[1] in ("replicated", "maximal device=0"):
        return (frozenset(),) * rank
    match = _DEVICES.match(found[1])
    if match is None:
        return None
    tiles = [int(n) for n in match[1].split(",")]
    total = prod(axis_sizes.values())
    if prod(tiles) != total or len(tiles) < rank:
        return None
    if match[4]:
        ids = np.array([int(n) for n in match[4].split(",")])
    else:
        dims = [int(n) for n in match[2].split(",")]
        order = [int(n) for n in match[3].split(",")] if match[3] else None
        if prod(dims) != total:
            return None
        ids = np.arange(total).reshape(dims).transpose(order).ravel()
    at = np.empty((total, len(tiles)), int)  # partition id -> its tile along each dim
    at[ids] = np.stack(np.unravel_index(np.arange(total), tiles), 1)
    return tuple(varying_over(at[:, dim], axis_sizes) for dim in range(rank))


def varying_over(table: np.ndarray, axis_sizes: Mapping[str, int]) -> frozenset[str]:
    """The mesh axes along which a number that each partition has is not the same."""
    whole = table.reshape(tuple(axis_sizes.values()))
    return frozenset(
        name for n, name in enumerate(axis_sizes) if (whole != whole.take([0], axis=n)).any()
    )
