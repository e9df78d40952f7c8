"""The Exchange record, and the Split that one is made for.

An exchange is made for a mesh and the axes over which rows and positions are sharded, and knows no
model and no strategy. It gives attention as one function of whole arrays, as the hook wants it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.mesh import MeshShape, entry_of

Attend = Callable[..., jax.Array]
"""`attend(q, k, v, *, causal=True)`, shapes as in `hooks.attention`."""


@dataclass(frozen=True)
class Split:
    """How the operands of attention are sharded.

    Attributes:
        mesh: the devices.
        batch: mesh axes over which rows are sharded, each larger than 1.
        sequence: mesh axes over which positions are sharded, each larger than 1, major to minor.
        ordered: whether the positions may be dealt out in another order than they come in, because
            the model asks where its rows stand.
    """

    mesh: MeshShape
    batch: tuple[str, ...]
    sequence: tuple[str, ...]
    ordered: bool = False

    @property
    def ways(self) -> int:
        """How many shards a sequence has."""
        return prod(self.mesh.size(axis) for axis in self.sequence)

    def over_shards(self, local: Callable, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """`local(q, k, v)` on every device's shard; shapes as in `hooks.attention`."""
        rows = (entry_of(self.batch), entry_of(self.sequence))
        queries, keys = PartitionSpec(*rows, None, None, None), PartitionSpec(*rows, None, None)
        mapped = jax.shard_map(
            local, mesh=self.mesh.abstract, in_specs=(queries, keys, keys), out_specs=queries
        )
        return mapped(q, k, v)


@dataclass(frozen=True)
class Exchange:
    """One way for attention to see a whole sequence of which each device has a shard.

    Attributes:
        name: for people.
        split: what it was made for.
        local: `local(q, k, v, *, causal)` on one device's shards, under shard_map.
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

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool = True
    ) -> jax.Array:
        """Attention over the whole sequence; shapes as in `hooks.attention`."""
        return self.split.over_shards(partial(self.local, causal=causal), q, k, v)
