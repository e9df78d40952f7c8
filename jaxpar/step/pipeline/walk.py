"""The walk of one device through a timetable, inside shard_map: work, exchange, work, exchange.

Between ticks a device has its `Buffers`; every kind of work takes them, and returns what is to be
sent and what it changes of them.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.jax_compat import varying_axes
from jaxpar.core.scopes import BACK, BOTH, ONWARD, message_scope, tick_scope, turns_scope
from jaxpar.core.varying import varying
from jaxpar.layout.stages import AXIS
from jaxpar.step.pipeline.buffers import Buffers, put, vary
from jaxpar.step.pipeline.timetable import FORWARD, IDLE, Counts, Exchange, Loop, Pairs, Timetable
from jaxpar.step.pipeline.work import Local, Work, given, means_of, scored_by_all, works


def walk(
    local: Local, table: Timetable, *, factor: float | None = None, fill: float = 0.0
) -> Buffers:
    """Run every tick; returns the `Buffers` after the last, with this device's sums in them.

    Args:
        local: the loss on this device.
        table: what to do when.
        factor: what the loss's total is multiplied by before it is differentiated; None when there
            are no backward passes, and the last piece scores what it makes.
        fill: what idle stages send; whatever it is, no result may depend on it.
    """
    stage = lax.axis_index(AXIS)
    columns = {name: jnp.asarray(t)[:, stage] for name, t in table.columns().items()}
    ends = {name: jnp.asarray(t[:, -1]) for name, t in table.columns().items()}
    buffers = _empty(local, table, train=factor is not None)
    types = jax.tree.map(varying, buffers)

    def turn(loop: Loop, buffers, turns):
        rows, last = turns
        for position, exchange in enumerate(loop.exchanges):
            row = {name: values[position] for name, values in rows.items()}
            send = jax.tree.map(lambda x: jnp.full(x.shape[1:], fill, x.dtype), buffers.x)
            send = jax.tree.map(vary, send, types.x)
            for work in works(factor):
                send, buffers = _done(local, work, loop.counts[position], row, send, buffers)
            if local.shared is not None and factor is not None:
                end = {name: values[position] for name, values in last.items()}
                buffers = _scored(local, loop.counts[position], end, buffers, factor)
            arrivals = {pairs: _handed(send, pairs, exchange) for pairs in exchange.permutes}
            buffers = replace(
                buffers,
                x=put(buffers.x, arrivals.get(exchange.onward), row["land_x"]),
                dy=put(buffers.dy, arrivals.get(exchange.back), row["land_dy"]),
                idle=buffers.idle + (row["kind"] == IDLE),
            )
        return jax.tree.map(vary, buffers, types), None

    for loop in table.loops:
        width = len(loop.exchanges)
        ticks = slice(loop.first, loop.first + loop.turns * width)
        rows, last = (
            {name: c[ticks].reshape(loop.turns, width) for name, c in each.items()}
            for each in (columns, ends)
        )
        buffers, _ = lax.scan(lambda h, r, loop=loop: turn(loop, h, r), buffers, (rows, last))
    return buffers


def _handed(send: Any, pairs: Pairs, exchange: Exchange) -> Any:
    """What arrives from neighbours by one permute of an exchange."""
    ways = {exchange.onward: ONWARD, exchange.back: BACK}
    with message_scope(BOTH if len(ways) == 1 else ways[pairs]):
        return lax.ppermute(send, AXIS, pairs)


def _done(local: Local, work: Work, counts: Counts, row, send: Any, buffers: Buffers):
    """(what is to be sent, the buffers) after a tick's work of one kind, if the row asks for it.

    A loop of one turn or none, and no conditional: of a buffer that a branch hands on XLA makes a
    copy, and what forward keeps is most of a device's memory. A loop works on it in place.
    """
    often, total = counts.of.get(work.kind, 0), sum(counts.of.values())
    if not often:
        return send, buffers
    own = {name: getattr(buffers, name) for name in work.changes}
    start = (row["kind"] == work.kind, send, own)
    types = jax.tree.map(varying, start)

    def turn(now):
        done = work.do(local, row, replace(buffers, **now[2]), counts)
        return jax.tree.map(vary, (jnp.zeros((), bool), *done), types)

    if often == total:
        _, send, own = turn(start)
    else:
        busy = total - counts.of.get(IDLE, 0)
        with tick_scope(busy, total), turns_scope(often, total):
            _, send, own = lax.while_loop(lambda now: now[0], turn, start)
    return send, replace(buffers, **own)


def _scored(local: Local, counts: Counts, end, buffers: Buffers, factor: float) -> Buffers:
    """The buffers after all stages have computed the loss of what the last has made, if it has."""
    often, turns = counts.last.get(FORWARD, 0), sum(counts.of.values()) // local.stages
    if not often:
        return buffers
    own = {name: getattr(buffers, name) for name in ("y", "rest", "means")}
    start = ((end["kind"] == FORWARD) & (end["last"] == 1), own)
    types = jax.tree.map(varying, start)

    def turn(now):
        done = scored_by_all(local, end, replace(buffers, **now[1]), factor)
        return jax.tree.map(vary, (jnp.zeros((), bool), done), types)

    if often == turns:
        _, own = turn(start)
    else:
        with turns_scope(often, turns):
            _, own = lax.while_loop(lambda now: now[0], turn, start)
    return replace(buffers, **own)


def _empty(local: Local, table: Timetable, *, train: bool) -> Buffers:
    """Empty slots, and sums of nothing, of the types that the walk will fill them with."""
    stage = lax.axis_index(AXIS)

    def probe():
        zero = jnp.zeros((), jnp.int32) + 0 * stage
        batch, key = local.batch_of(zero), local.key_of(zero)
        x = local.before(local.rest, batch, key)
        weights = given(local, {"chunk": zero}, batch, key)
        y, kept = local.piece.one(*weights, x) if train else (local.piece.run(*weights, x), [])
        return y, kept, means_of(local.after(local.rest, y, batch, key))

    closed, shapes = jax.make_jaxpr(probe, return_shape=True)()
    avals = jax.tree.unflatten(jax.tree.structure(shapes), closed.out_avals)

    def empty(aval, *slots):
        return vary(jnp.zeros((*slots, *aval.shape), aval.dtype), varying_axes(aval) | {AXIS})

    def nothing(weights):
        zeros = {p: jnp.zeros(x.shape, local.dtypes[p]) for p, x in weights.items() if train}
        return {p: vary(x, varying(weights[p])) for p, x in zeros.items()}

    y, kept, means = avals
    slots, layers = table.slots, -(-local.count // local.pieces)
    return Buffers(
        x=jax.tree.map(lambda a: empty(a, slots["x"]), y),
        dy=jax.tree.map(lambda a: empty(a, slots["dy"]), y),
        y=jax.tree.map(lambda a: empty(a, slots["keep_y"]), y),
        kept=[empty(k, slots["keep"], layers) for k in kept],
        rest=nothing(local.rest),
        layers=nothing(local.layers),
        means=jax.tree.map(empty, means),
        idle=vary(jnp.zeros((), jnp.float32), {AXIS}),
    )
