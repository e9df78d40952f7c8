"""What may differ between devices, by the types that arrays have under shard_map."""

from collections.abc import Iterable
from typing import Any

import jax
from jax.sharding import ManualAxisType, NamedSharding, PartitionSpec

from jaxpar.core.jax_compat import varying_axes


def varying(array: Any) -> frozenset[str]:
    """The mesh axes along which JAX's types let this array differ between devices."""
    return varying_axes(jax.typeof(array))


def as_varying(array: jax.Array, axes: Iterable[str]) -> jax.Array:
    """The array, in the type of one that may differ along `axes` too."""
    missing = tuple(sorted(frozenset(axes) - varying(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def varying_shape(shape: tuple[int, ...], dtype: Any, axes: frozenset[str]) -> Any:
    """The type of an array that may differ along `axes`, as a jax.ShapeDtypeStruct."""
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    here = NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec(*[None] * len(shape)))
    kind = ManualAxisType(varying=axes)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=here, manual_axis_type=kind)
