"""The Layout record: where every dim of every array of a model lies on a mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxpar.attention.fit import exchange_of
from jaxpar.attention.record import Exchange
from jaxpar.core.mesh import MeshShape, axes_of, entry_of, shards
from jaxpar.layout.specs import _by_role
from jaxpar.layout.stages import layer_order
from jaxpar.models.modules import Parts
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import Strategy


@dataclass(frozen=True)
class Array:
    """One array of the model, and how it is cut.

    Attributes:
        path: where it sits in the module, such as `blocks/qkv`.
        shape, dtype, dims: its sizes, element type, and a name for each dim.
        stored: how it lies between uses.
        computed: how it lies in use; differs from `stored` where the strategy gathers weights.
        gradient: how its gradient lies once it is summed.
        moment: how the optimizer's moments of it lie.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    dims: tuple[str, ...]
    stored: PartitionSpec
    computed: PartitionSpec
    gradient: PartitionSpec
    moment: PartitionSpec

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """All the ways in which it lies."""
        return (self.stored, self.computed, self.gradient, self.moment)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * itemsize(self.dtype)

    def device_bytes(self, mesh: MeshShape) -> int:
        """Bytes of it on each device of `mesh`."""
        return self.whole_bytes // shards(self.stored, mesh)


@dataclass(frozen=True)
class Layout:
    """A model laid out by a strategy on a mesh shape.

    Attributes:
        model, strategy, mesh: what was laid out.
        parameters, state: path -> `Array`; `state` is what a step changes without a gradient.
        batch: field name -> PartitionSpec.
        notes: what a person should know about this layout, a sentence each.
        module: the module's structure and abstract variables, as `take_apart` returns them.
    """

    model: Model
    strategy: Strategy
    mesh: MeshShape
    parameters: Mapping[str, Array]
    state: Mapping[str, Array]
    batch: Mapping[str, PartitionSpec]
    notes: tuple[str, ...]
    module: Parts

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Over which mesh axes the rows of a batch lie."""
        return axes_of(next(iter(self.batch.values()))[0])

    @property
    def row_shares(self) -> int:
        """Into how many shares the rows of a batch are cut."""
        return prod(self.mesh.size(axis) for axis in self.row_axes)

    def with_rows(self, rows: int) -> "Layout":
        """The same layout of a batch of so many rows."""
        if rows == self.model.batch_size:
            return self
        return replace(self, model=self.model.with_batch_size(rows))

    def order_of(self, path: str) -> tuple[int, ...] | None:
        """Which layer lies at each place of a stored stack; None for their own order."""
        array = self.parameters[path]
        if not array.dims or role_of(self.model, array.dims[0]) != "layers":
            return None
        return layer_order(self.strategy, self.mesh, array.shape[0])

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, whole."""
        return sum(a.whole_bytes for a in self.parameters.values())

    @property
    def parameter_device_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(a.device_bytes(self.mesh) for a in self.parameters.values())

    @property
    def exchange(self) -> Exchange | None:
        """How attention sees a split sequence, or None where it sees it whole."""
        return exchange_of(self.model, self.strategy, self.mesh)

    def place_of(self, dims: tuple[str, ...], *, between: bool = False) -> PartitionSpec:
        """How an activation with these dims lies: in use, or `between` the parts of a block.

        An axis that several of the dims want goes to the first of them.
        """
        spec = _by_role(self.model, self.strategy, self.mesh, dims, between=between)
        taken: set[str] = set()
        entries = []
        for entry in spec:
            entries.append(entry_of(axis for axis in axes_of(entry) if axis not in taken))
            taken.update(axes_of(entry))
        return PartitionSpec(*entries)


def itemsize(dtype: Any) -> int:
    """Bytes of one element; a random key counts as its data."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize
