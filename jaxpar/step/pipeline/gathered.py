"""Weights that a stage gathers before its first microbatch, and their gradients scattered after.

Between the two a weight is held as it is used, in the type that the loss casts it to; its gradient
is accumulated on each device in the weight's own type, and summed over devices once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.scopes import weight_scope
from jaxpar.layout.gathering import gathers_once
from jaxpar.layout.record import Layout
from jaxpar.step.constraints import sharded_further
from jaxpar.step.narrowed import narrowed


@dataclass(frozen=True)
class Gathering:
    """What is done with the weights that a strategy stores sharded.

    Attributes:
        layout: whose weights.
        once: whether they are gathered here; else where the loss uses them.
        dtypes: path -> the type to gather a weight in, where that is not its own.
    """

    layout: Layout
    once: bool
    dtypes: Mapping[str, np.dtype]

    @classmethod
    def of(cls, layout: Layout, traced) -> Gathering:
        """What a layout's stages do, given the traced loss."""
        compute, dtypes = layout.model.compute_dtype, narrowed(traced)
        wanted = {
            path: np.dtype(dtypes.get(path, compute) or array.dtype)
            for path, array in layout.parameters.items()
            if len(array.shape) > 1
        }
        return cls(layout, gathers_once(layout), wanted)

    def spec(self, path: str) -> PartitionSpec:
        """How a weight is sharded when the loss is given it."""
        array = self.layout.parameters[path]
        return array.used if self.once else array.stored

    def gathered(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Shards of weights by path, gathered to be as `spec` says; in the type of their use."""
        return {path: self._gathered(path, value) for path, value in weights.items()}

    def _gathered(self, path: str, value: jax.Array) -> jax.Array:
        """One of them."""
        pairs = self._pairs(path)
        if not pairs:
            return value
        # The name ends up in the compiled program, where `inspect` reads whose gather it is.
        with weight_scope(path):
            value = value.astype(self.dtypes.get(path, value.dtype))
            for dim, axis in reversed(pairs):
                value = lax.all_gather(value, axis, axis=dim, tiled=True, to="varying")
        return value

    def wide(self, weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Weights in their own types again, as the loss was traced with; XLA drops both casts."""
        return {p: x.astype(self.layout.parameters[p].dtype) for p, x in weights.items()}

    def scattered(self, path: str, share: jax.Array) -> jax.Array:
        """A device's share of a gathered weight's gradient, summed over the axes it was gathered
        over, sharded as the weight is stored."""
        for dim, axis in self._pairs(path):
            share = lax.psum_scatter(share, axis, scatter_dimension=dim, tiled=True)
        return share

    def _pairs(self, path: str) -> list[tuple[int, str]]:
        """The dims along which a weight is gathered here, with the axes."""
        array = self.layout.parameters[path]
        return sharded_further(array, "stored", than="used") if self.once else []
