"""The Layout record: how every array of a model is sharded on a mesh."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxpar.attention.fit import exchange_of, local_attention
from jaxpar.attention.record import Exchange, Local
from jaxpar.core.errors import one_line
from jaxpar.core.figures import bytes_text
from jaxpar.core.mesh import MeshShape, axes_of, entry_of, shards, sizes_of
from jaxpar.layout.specs import by_role
from jaxpar.layout.stages import layer_order
from jaxpar.models.modules import Parts
from jaxpar.models.pieces import pieces_of
from jaxpar.models.record import Model, role_of
from jaxpar.report.notebook import notebook_html
from jaxpar.strategies.record import Strategy


@dataclass(frozen=True)
class Array:
    """One array of the model, and how it is sharded.

    Attributes:
        path: where it sits in the module, such as `blocks/qk`.
        shape, dtype, dims: its sizes, element type, and a name for each dim.
        stored: how it is sharded between uses.
        used: how it is sharded in use; differs from `stored` where the strategy gathers weights.
        gradient: how its gradient is sharded once it is summed.
        optimizer_state: how the optimizer's state of it is sharded, such as Adam's moments.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    dims: tuple[str, ...]
    stored: PartitionSpec
    used: PartitionSpec
    gradient: PartitionSpec
    optimizer_state: PartitionSpec

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """Its four PartitionSpecs: stored, in use, of its gradient, of its optimizer state."""
        return (self.stored, self.used, self.gradient, self.optimizer_state)

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

    def __repr__(self) -> str:
        return one_line(
            f"<Layout {self.title}: {bytes_text(self.parameter_bytes)} of parameters, "
            f"{bytes_text(self.parameter_device_bytes)} per device>"
        )

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "layout", **self.record()})

    @property
    def title(self) -> str:
        """What was laid out, in a line."""
        return f"{self.model.name} under {self.strategy.name} on {self.mesh}"

    def record(self) -> dict[str, Any]:
        """The layout as one JSON-ready dict."""
        return {
            "model": self.model.name,
            "strategy": self.strategy.name,
            "mesh": sizes_of(self.mesh),
            "devices": self.mesh.devices,
            "batch": self.model.batch_size,
            "parameters": sum(a.size for a in self.parameters.values()),
            "parameter_bytes": self.parameter_bytes,
            "parameter_bytes_per_device": self.parameter_device_bytes,
            "arrays": [
                {
                    "path": a.path,
                    "shape": list(a.shape),
                    "dims": list(a.dims),
                    "spec": [list(axes_of(entry)) for entry in a.stored],
                    "bytes": a.whole_bytes,
                    "bytes_per_device": a.device_bytes(self.mesh),
                }
                for group in (self.parameters, self.state)
                for a in group.values()
            ],
            "notes": list(self.notes),
        }

    @property
    def row_axes(self) -> tuple[str, ...]:
        """The mesh axes over which the rows of a batch are sharded."""
        return axes_of(next(iter(self.batch.values()))[0])

    @property
    def row_shares(self) -> int:
        """How many shards the rows of a batch have."""
        return prod(self.mesh.size(axis) for axis in self.row_axes)

    def with_rows(self, rows: int) -> "Layout":
        """The same layout of a batch of so many rows."""
        if rows == self.model.batch_size:
            return self
        return replace(self, model=self.model.with_batch_size(rows))

    def called(self, path: str) -> str:
        """What a person calls an array: a piece of a weight is so many of that weight's."""
        for weight in self.model.cuts:
            pieces = pieces_of(weight, self.model.cuts)
            if path in pieces:
                return f"{weight} ({pieces.index(path) + 1} of {len(pieces)})"
        return path

    def order_of(self, path: str) -> tuple[int, ...] | None:
        """The layer at each place of a stored stack, by its number; None for their own order."""
        array = self.parameters[path]
        if not array.dims or role_of(self.model, array.dims[0]) != "layers":
            return None
        return layer_order(self.strategy, self.mesh, array.shape[0])

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, each counted once."""
        return sum(a.whole_bytes for a in self.parameters.values())

    @property
    def parameter_device_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(a.device_bytes(self.mesh) for a in self.parameters.values())

    @property
    def attention(self) -> Exchange | Local:
        """How each device computes attention."""
        return self.exchange or local_attention(self.strategy, self.mesh)

    @property
    def exchange(self) -> Exchange | None:
        """How attention sees a sharded sequence; None where none is sharded."""
        return exchange_of(self.model, self.strategy, self.mesh)

    def place_of(self, dims: tuple[str, ...], *, between: bool = False) -> PartitionSpec:
        """How an activation with these dims is sharded: in use, or `between` the parts of a block.

        An axis that several of the dims want goes to the first of them.
        """
        spec = by_role(self.model, self.strategy, self.mesh, dims, between=between)
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
