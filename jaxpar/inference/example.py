"""The example batch that a person gives: any tree of arrays or shapes, its leaves known by path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.core.errors import RequestError
from jaxpar.core.kinds import MOST_COUNT
from jaxpar.core.paths import paths_of
from jaxpar.models.record import Field


@dataclass(frozen=True)
class Example:
    """An example batch.

    Attributes:
        tree: how the leaves make up what a loss takes.
        leaves: path -> shape and dtype.
        arrays: path -> values, or None where shapes were given.
    """

    tree: Any
    leaves: Mapping[str, jax.ShapeDtypeStruct]
    arrays: Mapping[str, np.ndarray] | None

    def fields(
        self, dims: Mapping[str, tuple[str, ...]], below: Mapping[str, tuple[int, int]]
    ) -> dict[str, Field]:
        """The batch as a Model's fields.

        Args:
            dims: path -> a name for each dim.
            below: path -> bound of its integers, and of those that some part of it may hold.
        """
        return {
            path: Field(
                leaf.shape,
                leaf.dtype.name,
                dims.get(path, ("batch", *(f"dim_{d}" for d in range(1, len(leaf.shape))))),
                *below.get(path, ()),
            )
            for path, leaf in self.leaves.items()
        }

    def assembled(self, values: Mapping[str, Any]) -> Any:
        """The tree that a loss takes, of these arrays by path."""
        return jax.tree.unflatten(self.tree, [values[path] for path in self.leaves])

    def zeros(self) -> Any:
        """Such a tree of zeros."""
        return self.assembled({p: jnp.zeros(s.shape, s.dtype) for p, s in self.leaves.items()})


def read_example(called: str, batch: Any) -> Example:
    """Read a tree of arrays or shapes; refuse one whose leaves differ in their first dim.

    >>> read_example("net", {"x": np.zeros((4, 3)), "y": np.zeros(4, "int32")}).leaves["y"].shape
    (4,)
    """
    leaves, tree = jax.tree.flatten_with_path(batch)
    if not leaves:
        raise RequestError(
            f"model '{called}': no example batch: give batch=, a tree of arrays or shapes such as "
            "{'x': jax.ShapeDtypeStruct((32, 784), 'float32')}"
        )
    shapes, arrays = {}, {}
    paths = paths_of(_keys(keys) for keys, _ in leaves)
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not hasattr(leaf, "shape"):
            leaf = np.asarray(leaf)
        if not _is_number(leaf.dtype):
            raise RequestError(
                f"model '{called}': the batch's '{path}' holds {leaf.dtype}, and a batch holds "
                "numbers that JAX has: turn it into integers or floats"
            )
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            arrays[path] = leaf = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        shapes[path] = jax.ShapeDtypeStruct(leaf.shape, dtype)
        if path in arrays:
            arrays[path] = arrays[path].astype(dtype)
    rows = {leaf.shape[0] if leaf.shape else None for leaf in shapes.values()}
    if None in rows or len(rows) > 1:
        each = ", ".join(f"{path} {leaf.shape}" for path, leaf in shapes.items())
        raise RequestError(
            f"model '{called}': the arrays of a batch have one first dim in common, its rows, and "
            f"these have not: {each}; give each of them a row an example, and let the loss close "
            "over what is no part of the batch"
        )
    size = next(iter(shapes.values())).shape[0]
    if not 0 < size <= MOST_COUNT:
        raise RequestError(
            f"model '{called}': the example batch has {size} rows: give it at least one, and "
            f"{MOST_COUNT:,} at most"
        )
    return Example(tree, shapes, arrays if len(arrays) == len(shapes) else None)


def _is_number(dtype: Any) -> bool:
    """Whether JAX has numbers of this dtype: no random key, no time, no more than 64 bits each."""
    if not (jnp.issubdtype(dtype, jnp.number) or np.dtype(bool) == dtype):
        return False
    parts = 2 if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    is_time = np.issubdtype(dtype, np.timedelta64)  # an integer, to numpy
    return not is_time and np.dtype(dtype).itemsize <= 8 * parts


def _keys(keys: tuple[Any, ...]) -> tuple[Any, ...]:
    """The names and indices in a JAX key path (`DictKey('x')` gives 'x'); ('batch',) for an empty
    one."""
    parts = tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in keys)
    return parts if any(map(str, parts)) else ("batch",)
