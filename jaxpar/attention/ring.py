"""Keys and values travel round the devices while each sees them with its own queries.

Ring attention (Liu et al. 2023), its blocks fused where they can be and joined by their log-sums;
where they cannot, no device holds more scores than its queries have with `blocks.KEYS` keys.
Communication per layer: with P the bytes of a device's keys and values and n devices, (n - 1) P
forward and 2 (n - 1) P backward, in which keys and values go round again and their gradients, in at
least float32, come home. All permutes; each is sent while the one before is computed with. Where
XLA has forward and backward of a layer in one piece of program (unrolled, or computed again) both
share the first hop: P less. Causal rings deal out positions in zigzag where the model asks where
they stand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxpar.attention import blocks, fused, zigzag
from jaxpar.attention.record import Exchange, Split
from jaxpar.core.hooks import ATTENDED

UNBALANCED = (
    "the model does not ask where its rows stand (no 'positions' in its hooks; with dropout none "
    "does), so each device holds a run of them: a causal ring then computes all pairs and drops "
    "half of them"
)


@dataclass(frozen=True)
class Ring:
    """One way round: the axes, how many devices are along them, what may see what, and
    the module whose `forward` and `backward` compute it, and by what scores are multiplied."""

    axes: tuple[str, ...]
    ways: int
    causal: bool
    zigzag: bool
    by: Any
    scale: float

    def pass_on(self, x: jax.Array) -> jax.Array:
        """The `x` of the device before; this device's goes to the next."""
        return lax.ppermute(x, self.axes, [(i, (i + 1) % self.ways) for i in range(self.ways)])

    def tiles(self, hop, rows: int) -> Iterator["Tile"]:
        """Which queries see which keys once these have come `hop` devices far (0: one's own)."""
        mine = lax.axis_index(self.axes)
        if isinstance(hop, int) and hop == 0:
            # Dealt out or not, a device's own positions rise from row to row.
            yield Tile(0, 0, rows, causal=self.causal)
        elif not self.causal:
            yield Tile(0, 0, rows)
        elif self.zigzag:
            # A late chunk sees every early one. Of the rest, keys of a device before this one are
            # seen early by early, those of one after it late by late: no mask, and equal work.
            half = rows // 2
            yield Tile(half, 0, half)
            both = jnp.where(mine >= hop, 0, half)
            yield Tile(both, both, half)
        else:
            # Of a device after this one nothing is seen.
            yield Tile(0, 0, rows, seen=mine >= hop)


@dataclass(frozen=True)
class Tile:
    """Runs of queries and of keys, by first rows and how many; whether one sees only up to itself,
    and whether anything is seen at all."""

    query: Any
    key: Any
    rows: int
    causal: bool = False
    seen: Any = True

    def queries(self, x: jax.Array, dim: int = 1) -> jax.Array:
        """The rows of `x` that belong to the queries."""
        return lax.dynamic_slice_in_dim(x, self.query, self.rows, axis=dim)

    def keys(self, x: jax.Array, dim: int = 1) -> jax.Array:
        """The rows of `x` that belong to the keys."""
        return lax.dynamic_slice_in_dim(x, self.key, self.rows, axis=dim)

    def counted(self, x: jax.Array, otherwise: float) -> jax.Array:
        """`x` if anything is seen, else `otherwise` throughout."""
        return x if self.seen is True else jnp.where(self.seen, x, otherwise)


def exchange(split: Split) -> Exchange:
    """Return the exchange that passes keys and values round the sequence's axes."""
    is_zigzag = split.ordered

    def local(q, k, v, *, causal, implementation, scale) -> Any:
        by = fused if fused.suits(q, v, implementation) else blocks
        ring = Ring(split.sequence, split.ways, causal, is_zigzag and causal, by, scale)
        return _attend(ring, q, k, v)

    return Exchange(
        name="ring",
        split=split,
        local=local,
        pieces=2 * split.ways if is_zigzag else split.ways,
        notes=() if is_zigzag else (UNBALANCED,),
        deal=zigzag.dealt(split) if is_zigzag else None,
        positions=partial(zigzag.positions, split.ways) if is_zigzag else None,
        # XLA makes a permute one event for all devices, and only some stages are at work.
        staged=False,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, q, k, v):
    """Attention of this device's queries to all keys, (B, Q, K, G, H); see `_backward`."""
    return _forward(ring, q, k, v)[0]


def _forward(ring, q, k, v):
    """What `_attend` returns, and what backward needs: q, own k and v, the result, its log-sums."""
    own = jnp.stack([k, v])  # one message instead of two

    def visit(hop, seen, travelling):
        for tile in ring.tiles(hop, q.shape[1]):
            keys, values = (tile.keys(x) for x in travelling)
            how = {"causal": tile.causal, "scale": ring.scale}
            y, log = ring.by.forward(tile.queries(q), keys, values, **how)
            so_far = tile.queries(seen[0]), tile.queries(seen[1], 3)
            log = tile.counted(log, jnp.finfo(log.dtype).min)
            both = _merged(*so_far, y.astype(seen[0].dtype), log)
            seen = tuple(
                lax.dynamic_update_slice_in_dim(x, new, tile.query, dim)
                for x, new, dim in zip(seen, both, (1, 3), strict=True)
            )
        return seen

    def turn(hop, carry):
        travelling, seen = carry
        onward = ring.pass_on(travelling)
        return onward, visit(hop, seen, travelling)

    travelling = ring.pass_on(own)
    (tile,) = ring.tiles(0, q.shape[1])
    y, log = ring.by.forward(q, k, v, causal=tile.causal, scale=ring.scale)
    seen = y.astype(log.dtype), log
    travelling, seen = lax.fori_loop(1, ring.ways - 1, turn, (travelling, seen))
    y, log = visit(ring.ways - 1, seen, travelling)
    y, log = (checkpoint_name(x, ATTENDED) for x in (y.astype(v.dtype), log))
    return y, (q, own, y, log)


def _merged(y, log, more, of_more):
    """The result over two sets of keys and its log-sums, from those over each."""
    both = jnp.logaddexp(log, of_more)
    mine, theirs = (jnp.moveaxis(jnp.exp(x - both), 3, 1)[..., None] for x in (log, of_more))
    return y * mine + more * theirs, both


def _backward(ring, kept, dy):
    """Gradients of queries, keys and values, from what `_forward` kept and a gradient."""
    q, own, y, log = kept

    def visit(hop, dq, travelling):
        gradient = jnp.zeros_like(travelling, dtype=dq.dtype)
        for tile in ring.tiles(hop, q.shape[1]):
            made = ring.by.backward(
                tile.queries(q),
                *(tile.keys(x) for x in travelling),
                tile.queries(y),
                tile.queries(log, 3),
                tile.queries(dy),
                causal=tile.causal,
                scale=ring.scale,
            )
            more, *of_keys = (tile.counted(x, 0).astype(dq.dtype) for x in made)
            dq = _added(dq, more, tile.query, 1)
            gradient = _added(gradient, jnp.stack(of_keys), tile.key, 2)
        return dq, gradient

    def turn(hop, carry):
        travelling, gathered, dq = carry
        onward = ring.pass_on(travelling)
        dq, more = visit(hop, dq, travelling)
        return onward, ring.pass_on(gathered + more), dq

    travelling = ring.pass_on(own)
    dq, of_own = visit(0, jnp.zeros_like(q, dtype=log.dtype), own)
    # The gradients of keys and values start where these first come by, and end where they belong.
    start = (travelling, jnp.zeros_like(of_own), dq)
    travelling, gathered, dq = lax.fori_loop(1, ring.ways - 1, turn, start)
    dq, more = visit(ring.ways - 1, dq, travelling)
    dk, dv = of_own + ring.pass_on(gathered + more)
    return dq.astype(q.dtype), dk.astype(own.dtype), dv.astype(own.dtype)


def _added(x, more, at, dim):
    """`x` with `more` added along `dim` from place `at` on."""
    there = lax.dynamic_slice_in_dim(x, at, more.shape[dim], axis=dim)
    return lax.dynamic_update_slice_in_dim(x, there + more, at, axis=dim)


_attend.defvjp(_forward, _backward)
