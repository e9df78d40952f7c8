"""The order of positions in which a causal ring is balanced: each device an early and a late chunk.

Of 2 n equal chunks device i holds chunks i and 2 n - 1 - i, in that order. Whatever device's keys
come by, its queries then see half of their pairs with them: all have equal work in every hop
(zigzag ring attention, as in Llama 3's context parallelism, Dubey et al. 2024).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.attention.record import Split


def positions(ways: int, length: int) -> jax.Array:
    """Where each row stands in its sequence, (length,), device after device.

    >>> positions(2, 8)
    Array([0, 1, 6, 7, 2, 3, 4, 5], dtype=int32)
    """
    chunks = np.arange(length, dtype=np.int32).reshape(2 * ways, -1)
    return jnp.asarray(np.stack([chunks[:ways], chunks[::-1][:ways]], axis=1).reshape(length))


def deal(split: Split, x: jax.Array, dim: int, spec: PartitionSpec) -> jax.Array:
    """`x`, sharded as `spec`, its dim `dim` in zigzag order instead of contiguous.

    Of 2 n chunks device i has chunks 2 i and 2 i + 1, and gets i and 2 n - 1 - i: one permute sends
    all even chunks, another all odd ones, so that each device receives one of each. A device of
    even number gets its early chunk among the even ones, another among the odd.
    """
    ways, axes = split.ways, split.sequence

    def home(chunk: int) -> int:
        return chunk if chunk < ways else 2 * ways - 1 - chunk

    def swap(x):
        # One after the other in the order that devices hold them before anything is dealt.
        halves = jnp.split(x, 2, axis=dim)
        even, odd = (
            lax.ppermute(half, axes, [(i, home(2 * i + k)) for i in range(ways)])
            for k, half in enumerate(halves)
        )
        first = lax.axis_index(axes) % 2 == 0
        return jnp.concatenate([jnp.where(first, even, odd), jnp.where(first, odd, even)], axis=dim)

    return jax.shard_map(swap, mesh=split.mesh.abstract, in_specs=spec, out_specs=spec)(x)


def dealt(split: Split):
    """`deal(x, dim, spec)` for one split."""
    return partial(deal, split)
