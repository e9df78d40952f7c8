"""Arrays of several processes: the rows of a batch that each hands in, and what all are told."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def rows_here(shape: tuple[int, ...], sharding: NamedSharding) -> slice:
    """The rows from the first to the last that this process's devices hold.

    Its devices hold all of them, unless the mesh's axes are in an unusual order.

    Args:
        shape: of the whole field.
        sharding: of it.
    """
    indices = sharding.addressable_devices_indices_map(shape).values()
    rows = [index[0].indices(shape[0]) for index in indices if index is not None]
    return slice(min(first for first, _, _ in rows), max(last for _, last, _ in rows))


def put_rows(values: Any, rows: slice, like: jax.ShapeDtypeStruct, sharding: NamedSharding) -> Any:
    """A field on the devices of all processes, each of which gives its own rows.

    Args:
        values: these rows of the field, its other dims whole.
        rows: which.
        like: shape and type of the whole field.
        sharding: of it.
    """
    if sharding.is_fully_addressable:
        return jax.make_array_from_process_local_data(sharding, values, like.shape)
    mine = np.asarray(values, like.dtype)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        first, last, _ = index[0].indices(like.shape[0])
        return mine[(slice(first - rows.start, last - rows.start), *index[1:])]

    indices = sharding.addressable_devices_indices_map(like.shape).items()
    shards = [
        jax.device_put(shard(index), device) for device, index in indices if index is not None
    ]
    return jax.make_array_from_single_device_arrays(like.shape, sharding, shards)


def replicated(array: Any) -> Any:
    """An array of which other processes hold shards, replicated on every device."""
    return _replicate(array.sharding.mesh)(array)


@cache
def _replicate(mesh: Mesh) -> Any:
    """What replicates an array on a mesh: kept, and so compiled once a shape."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
