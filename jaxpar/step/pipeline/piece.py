"""One piece of a stack of layers: forward, keeping what backward needs; and backward from that.

A loop over layers with its own reverse: `jax.vjp` of each layer is taken in forward, and of what it
keeps only the arrays that are not at hand again in backward are stored, never a weight.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core import hooks
from jaxpar.jaxprs.policy import keep_all_but_cheap
from jaxpar.step.pipeline.buffers import at, set_at


def remembering(layer: Callable, remat: str) -> Callable:
    """`layer` under the checkpoint policy that `remat` names; gathered weights are never kept."""
    # A function of its own, since JAX looks what it checkpoints up by hash and a plan has none.
    return hooks.rematerialized(
        lambda *args: layer(*args), remat, otherwise=keep_all_but_cheap, looped=True
    )


@dataclass
class Piece:
    """The layers of one piece, run forward and backward.

    `layer` is (weights, asides, x) -> x for one layer. How its derivative is put together from what
    was kept is learnt when `forward` is traced, and used when `backward` is.
    """

    layer: Callable
    _tree: Any = field(default=None, init=False)
    _origins: tuple[int | None, ...] = field(default=(), init=False)
    _kinds: tuple[Any, ...] = field(default=(), init=False)
    _shapes: tuple[tuple[int, ...], ...] = field(default=(), init=False)

    def _through(self, real, shared):
        """One layer as (weights, asides of its own, x) -> x; a place that is not `real` gives x."""

        def through(own, beside, there, x):
            y = self.layer(own, [*beside, *shared], x)
            if real is None:
                return y
            return jax.tree.map(lambda new, old: jnp.where(there, new, old), y, x)

        return through

    def run(self, weights, chunk, real, stacks, shared, x):
        """The activation after the piece.

        Args:
            weights: path -> (chunks, layers a chunk, ...).
            chunk: which of them the piece is.
            real: (layers,) of bool, False where a layer only fills up; None when all are real.
            stacks: with a leading dim of layers.
            shared: what all layers are given.
            x: the activation before it.
        """
        through = self._through(real, shared)

        def body(x, layer):
            index, beside, there = layer
            return through(at(weights, chunk, index), beside, there, x), None

        return lax.scan(body, x, (_numbers(weights), stacks, real))[0]

    def one(self, weights, chunk, real, stacks, shared, x):
        """The activation after one layer, and what is kept of it for backward."""
        beside, there = jax.tree.map(lambda stack: stack[0], (stacks, real))
        return self._kept(real, shared, at(weights, chunk, jnp.int32(0)), beside, there, x)

    def forward(self, weights, chunk, real, stacks, shared, x, kept, slot):
        """The activation after the piece, and `kept`, [array] of (slots, layers, ...), with what
        backward needs of it in a slot."""

        def body(carry, layer):
            (x, kept), (index, beside, there) = carry, layer
            y, new = self._kept(real, shared, at(weights, chunk, index), beside, there, x)
            pairs = zip(kept, new, strict=True)
            return (y, [set_at(all_of, one, slot, index) for all_of, one in pairs]), None

        return lax.scan(body, (x, kept), (_numbers(weights), stacks, real))[0]

    def _kept(self, real, shared, own, beside, there, x):
        """The activation after a layer, and the arrays of its derivative that are not at hand.

        Each as a vector: where forward and backward want its dims in another order, XLA then turns
        one layer's around, and not in every tick the buffer of all that is kept.
        """
        through = self._through(real, shared)
        y, back = jax.vjp(lambda w, a: through(w, beside, there, a), own, x)
        leaves, self._tree = jax.tree.flatten(back)
        at_hand = jax.tree.leaves((own, beside, there, shared))
        self._origins = tuple(
            next((i for i, known in enumerate(at_hand) if leaf is known), None) for leaf in leaves
        )
        kept = [leaf for leaf, origin in zip(leaves, self._origins, strict=True) if origin is None]
        self._kinds = tuple(_key_kind(leaf) for leaf in kept)
        arrays = [
            leaf if k is None else jax.random.key_data(leaf)
            for leaf, k in zip(kept, self._kinds, strict=True)
        ]
        self._shapes = tuple(array.shape for array in arrays)
        return y, [array.reshape(-1) for array in arrays]

    def backward(self, weights, chunk, real, stacks, shared, kept, slot, dy, sums):
        """The gradient of the activation before the piece, from that after it, and `sums`, shaped
        as the weights are, with the gradients of the piece's weights added."""

        def body(carry, layer):
            (dy, sums), (index, beside, there) = carry, layer
            own = at(weights, chunk, index)
            at_hand = jax.tree.leaves((own, beside, there, shared))
            arrays = [
                flat.reshape(shape)
                for flat, shape in zip(at(kept, slot, index), self._shapes, strict=True)
            ]
            fresh = iter(
                array if kind is None else jax.random.wrap_key_data(array, impl=kind)
                for array, kind in zip(arrays, self._kinds, strict=True)
            )
            leaves = [next(fresh) if i is None else at_hand[i] for i in self._origins]
            dw, dx = jax.tree.unflatten(self._tree, leaves)(dy)
            new = {p: at(x, chunk, index) + dw[p] for p, x in sums.items()}
            return (dx, {p: set_at(x, new[p], chunk, index) for p, x in sums.items()}), None

        return lax.scan(body, (dy, sums), (_numbers(weights), stacks, real), reverse=True)[0]


def _numbers(weights) -> jax.Array:
    """The numbers of the layers of a chunk."""
    return jnp.arange(jax.tree.leaves(weights)[0].shape[1], dtype=jnp.int32)


def _key_kind(leaf):
    """How a random key is made of its data; None for what is no key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_impl(leaf)
    return None
