"""Attention on a mesh: `Local`, or an `Exchange`; and the Split that either is made for.

Each is made for a mesh and the axes over which rows, positions and heads are sharded, and knows no
model and no strategy. It gives attention as one function of whole arrays, as the hook wants it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, ClassVar

import jax
from jax.sharding import PartitionSpec

from jaxpar.attention.fused import attend, suits
from jaxpar.core import hooks
from jaxpar.core.mesh import MeshShape, entry_of, free_axes


@dataclass(frozen=True)
class Split:
    """How the operands of attention are sharded.

    Attributes:
        mesh: the devices.
        batch: mesh axes over which rows are sharded, each larger than 1.
        sequence: mesh axes over which positions are sharded, each larger than 1, major to minor.
        heads: mesh axes over which key-value heads are sharded, each larger than 1.
        ordered: whether the positions may be dealt out in another order than they come in, because
            the model asks where its rows stand.
    """

    mesh: MeshShape
    batch: tuple[str, ...]
    sequence: tuple[str, ...]
    heads: tuple[str, ...] = ()
    ordered: bool = False

    @property
    def ways(self) -> int:
        """How many shards a sequence has."""
        return prod(self.mesh.size(axis) for axis in self.sequence)

    def fitting(self, shape: tuple[int, ...]) -> "Split":
        """The split of queries of a shape, without what does not divide their rows or heads."""

        def fit(size, axes):
            return () if size % prod(self.mesh.size(axis) for axis in axes) else axes

        return replace(self, batch=fit(shape[0], self.batch), heads=fit(shape[2], self.heads))

    def over_shards(self, local: Callable, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """`local(q, k, v)` on every device's shard; shapes as in `hooks.attention`."""
        if self.mesh.devices == 1:
            return local(q, k, v)
        dims = (entry_of(self.batch), entry_of(self.sequence), entry_of(self.heads))
        queries, keys = PartitionSpec(*dims, None, None), PartitionSpec(*dims, None)
        mesh = self.mesh.abstract
        mapped = jax.shard_map(
            local,
            mesh=mesh,
            axis_names=free_axes(mesh),
            in_specs=(queries, keys, keys),
            out_specs=queries,
        )
        return mapped(q, k, v)


@dataclass(frozen=True)
class Local:
    """Attention of whole sequences, each device's to its own rows and heads.

    Attributes:
        split: what it was made for; no sequence is sharded. None where it need not be mapped to
            devices, because whoever evaluates it does so by its dims.
    """

    split: Split | None
    deal: ClassVar[None] = None
    positions: ClassVar[None] = None

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, **how: Any) -> jax.Array:
        """Attention, fused where it can be; `how` is what the hook `attend` was asked for."""
        if not suits(q, v, how["implementation"]):
            return hooks.attention(q, k, v, **how)
        here = partial(attend, how["causal"], how["scale"])
        if self.split is None:
            return here(q, k, v)
        return self.split.fitting(q.shape).over_shards(here, q, k, v)

    @property
    def unmapped(self) -> "Local":
        """The same, for whoever maps it to devices by its dims."""
        return Local(None)


@dataclass(frozen=True)
class Whole:
    """Attention with every score held, on one device, whatever is asked for: to count its work."""

    deal: ClassVar[None] = None
    positions: ClassVar[None] = None

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, **how: Any) -> jax.Array:
        """Attention as in `hooks.attention`."""
        return hooks.attention(q, k, v, **how)


@dataclass(frozen=True)
class Exchange:
    """One way for attention to see a whole sequence of which each device has a shard.

    Attributes:
        name: for people.
        split: what it was made for.
        local: `local(q, k, v, *, causal, implementation, scale)` on one device's shards, under
            shard_map.
        pieces: what a sequence length has to be divisible by.
        faults: (heads of keys and values, queries a head) -> what is wrong with them, a sentence
            each.
        notes: what a person should know about it, a sentence each.
        deal: (array, dim, spec) -> the whole array with that dim in the order that `local` wants,
            or None where that is the order in which positions come.
        positions: length -> where each row stands in its sequence, or None likewise.
        staged: whether it can be done by some devices while others are idle, as in a pipeline.
    """

    name: str
    split: Split
    local: Callable[..., jax.Array]
    pieces: int
    faults: Callable[[int, int], list[str]] = lambda heads, group: []
    notes: tuple[str, ...] = ()
    deal: Callable[[jax.Array, int, PartitionSpec], jax.Array] | None = None
    positions: Callable[[int], jax.Array] | None = None
    staged: bool = True

    @property
    def unmapped(self) -> "Exchange":
        """Itself: it is mapped to devices by what it is."""
        return self

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, **how: Any) -> jax.Array:
        """Attention over the whole sequence; `how` is what the hook `attend` was asked for."""
        return self.split.over_shards(partial(self.local, **how), q, k, v)
