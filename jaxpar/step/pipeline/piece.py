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

from jaxpar.jaxprs.policy import keep_all_but_cheap


def remembering(layer: Callable, remat: str) -> Callable:
    """`layer` under the checkpoint policy that `remat` names; gathered weights are never kept."""
    policies = jax.checkpoint_policies
    named = {
        "none": keep_all_but_cheap,
        "full": policies.nothing_saveable,
        "dots": policies.dots_saveable,
    }
    policy = named.get(remat) or policies.save_only_these_names(*remat.split(","))
    # A function of its own, since JAX looks what it checkpoints up by hash and a plan has none.
    return jax.checkpoint(lambda *args: layer(*args), policy=policy, prevent_cse=False)


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

    def _through(self, real, shared):
        """One layer as (weights, asides of its own, x) -> x; a place that is not `real` gives x."""

        def through(own, beside, there, x):
            y = self.layer(own, [*beside, *shared], x)
            if real is None:
                return y
            return jax.tree.map(lambda new, old: jnp.where(there, new, old), y, x)

        return through

    def run(self, weights, real, stacks, shared, x):
        """The activation after the piece.

        Args:
            weights, stacks: with a leading dim of layers.
            real: (layers,) of bool, False where a layer only fills up; None when all are real.
            shared: what all layers are given.
            x: the activation before it.
        """
        through = self._through(real, shared)

        def body(x, layer):
            own, beside, there = layer
            return through(own, beside, there, x), None

        return lax.scan(body, x, (weights, stacks, real))[0]

    def forward(self, weights, real, stacks, shared, x):
        """The activation after the piece, and [array] of (layers, ...) to keep for backward."""

        through = self._through(real, shared)

        def body(x, layer):
            own, beside, there = layer
            y, back = jax.vjp(lambda w, a: through(w, beside, there, a), own, x)
            leaves, self._tree = jax.tree.flatten(back)
            at_hand = jax.tree.leaves((own, beside, there, shared))
            self._origins = tuple(
                next((i for i, known in enumerate(at_hand) if leaf is known), None)
                for leaf in leaves
            )
            kept = [leaf for leaf, at in zip(leaves, self._origins, strict=True) if at is None]
            self._kinds = tuple(_key_kind(leaf) for leaf in kept)
            return y, [
                leaf if k is None else jax.random.key_data(leaf)
                for leaf, k in zip(kept, self._kinds, strict=True)
            ]

        return lax.scan(body, x, (weights, stacks, real))

    def backward(self, weights, real, stacks, shared, kept, dy):
        """Gradients of the activation before the piece and of its weights, from that after it."""

        def body(dy, layer):
            own, beside, there, held = layer
            at_hand = jax.tree.leaves((own, beside, there, shared))
            fresh = iter(
                value if kind is None else jax.random.wrap_key_data(value, impl=kind)
                for value, kind in zip(held, self._kinds, strict=True)
            )
            leaves = [next(fresh) if at is None else at_hand[at] for at in self._origins]
            dw, dx = jax.tree.unflatten(self._tree, leaves)(dy)
            return dx, dw

        return lax.scan(body, dy, (weights, stacks, real, kept), reverse=True)


def _key_kind(leaf):
    """How a random key is made of its data; None for what is no key."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_impl(leaf)
    return None
