"""The walk of one device through a timetable, inside shard_map: work, exchange, work, exchange.

Between ticks a device has its `Buffers`; every kind of work takes them, and returns what is to be
sent and the `Buffers` that it leaves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.jax_compat import varying_axes
from jaxpar.core.scopes import TICK
from jaxpar.core.varying import varying
from jaxpar.layout.stages import AXIS
from jaxpar.step.pipeline.buffers import Buffers, add, at, put, vary
from jaxpar.step.pipeline.piece import Piece
from jaxpar.step.pipeline.timetable import BACKWARD, FORWARD, IDLE, Counts, Loop, Timetable


@dataclass(frozen=True)
class Local:
    """A loss on this device's shards: the parts of `Parts`, as functions of local arrays.

    Attributes:
        before, aside, after: as in `Parts`, taking (rest, batch, key) or (rest, y, batch, key);
            `after` gives ((Mean, metrics)).
        piece: the layers of one chunk.
        rest: path -> this device's shard of a parameter outside the layers.
        layers: path -> (chunks, layers a chunk, ...), the layers that this stage holds.
        dtypes: path -> the type in which the gradient of a weight is accumulated.
        stacked_asides: how many of `aside`'s arrays have a leading dim of all layers.
        count: how many layers there are in all; places beyond them in the last pieces do nothing.
        pieces: how many pieces all layers are in.
        batch_of: microbatch -> its rows on this device.
        key_of: microbatch -> its random key, or None.
    """

    before: Callable
    aside: Callable
    after: Callable
    piece: Piece
    rest: Mapping[str, jax.Array]
    layers: Mapping[str, jax.Array]
    dtypes: Mapping[str, Any]
    stacked_asides: int
    count: int
    pieces: int
    stages: int
    batch_of: Callable
    key_of: Callable


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
    stage, train = lax.axis_index(AXIS), factor is not None
    columns = {name: jnp.asarray(t)[:, stage] for name, t in table.columns().items()}
    buffers = _empty(local, table, train)
    types = jax.tree.map(varying, buffers)
    work = {
        IDLE: lambda row, buffers, counts: _idle(buffers, fill),
        FORWARD: lambda row, buffers, counts: _forward(local, row, buffers, counts, train),
        BACKWARD: lambda row, buffers, counts: _backward(
            local, row, buffers, counts, factor or 0.0
        ),
    }

    def alike(tree, types=types):
        return jax.tree.map(vary, tree, types)

    def turn(loop: Loop, buffers, rows):
        for position, exchange in enumerate(loop.exchanges):
            row = {name: values[position] for name, values in rows.items()}
            send, buffers = _work(work, loop, position, row, buffers, alike)
            arrivals = {pairs: lax.ppermute(send, AXIS, pairs) for pairs in exchange.permutes}
            buffers = replace(
                buffers,
                x=put(buffers.x, arrivals.get(exchange.onward), row["land_x"]),
                dy=put(buffers.dy, arrivals.get(exchange.back), row["land_dy"]),
            )
        return alike(buffers), None

    for loop in table.loops:
        width = len(loop.exchanges)
        ticks = slice(loop.first, loop.first + loop.turns * width)
        rows = {name: c[ticks].reshape(loop.turns, width) for name, c in columns.items()}
        buffers, _ = lax.scan(lambda h, r, loop=loop: turn(loop, h, r), buffers, rows)
    return buffers


def _empty(local: Local, table: Timetable, train: bool) -> Buffers:
    """Empty slots, and sums of nothing, of the types that the walk will fill them with."""
    stage = lax.axis_index(AXIS)

    def probe():
        zero = jnp.zeros((), jnp.int32) + 0 * stage
        batch, key = local.batch_of(zero), local.key_of(zero)
        x = local.before(local.rest, batch, key)
        given = _given(local, {"chunk": zero}, batch, key)
        y, kept = local.piece.forward(*given, x) if train else (local.piece.run(*given, x), [])
        return y, kept, _means(local.after(local.rest, y, batch, key))

    closed, shapes = jax.make_jaxpr(probe, return_shape=True)()
    avals = jax.tree.unflatten(jax.tree.structure(shapes), closed.out_avals)

    def empty(aval, *slots):
        return vary(jnp.zeros((*slots, *aval.shape), aval.dtype), varying_axes(aval) | {AXIS})

    def nothing(weights):
        zeros = {p: jnp.zeros(x.shape, local.dtypes[p]) for p, x in weights.items() if train}
        return {p: vary(x, varying(weights[p])) for p, x in zeros.items()}

    y, kept, means = avals
    slots = table.slots
    return Buffers(
        x=jax.tree.map(lambda a: empty(a, slots["x"]), y),
        dy=jax.tree.map(lambda a: empty(a, slots["dy"]), y),
        y=jax.tree.map(lambda a: empty(a, slots["keep_y"]), y),
        kept=[empty(k, slots["keep"]) for k in kept],
        rest=nothing(local.rest),
        layers=nothing(local.layers),
        means=jax.tree.map(empty, means),
        idle=vary(jnp.zeros((), jnp.float32), {AXIS}),
    )


def _work(work, loop: Loop, position: int, row, buffers, alike):
    """Do what the row says; every kind of work gives results of one type."""
    kinds, counts = sorted(loop.kinds), loop.counts[position]

    def branch(kind):
        def run(buffers):
            send, after = work[kind](row, buffers, counts)
            return alike(send, jax.tree.map(varying, buffers.x)), alike(after)

        return run

    if len(kinds) == 1:
        return branch(kinds[0])(buffers)
    index = sum((row["kind"] > kind).astype(jnp.int32) for kind in kinds[:-1])
    taken = [counts.of.get(kind, 0) for kind in kinds]
    with jax.named_scope(TICK), _taken(taken, sum(counts.of.values())):
        return lax.switch(index, [branch(kind) for kind in kinds], buffers)


def _taken(times: list[int], total: int):
    """A name scope with how often each branch is taken, in order, for readers of the program."""
    return jax.named_scope(f"taken({','.join(map(str, times))};{total})")


def _idle(buffers: Buffers, fill: float):
    """What an idle stage sends, and its buffers with one more idle tick counted."""
    send = jax.tree.map(lambda x: jnp.full(x.shape[1:], fill, x.dtype), buffers.x)
    return send, replace(buffers, idle=buffers.idle + 1)


def _forward(local: Local, row, buffers: Buffers, counts: Counts, train: bool):
    """The activation after this chunk, and the buffers with what backward needs of it."""
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    last = row["last"] == 1
    x = _either(
        row["first"] == 1,
        lambda: local.before(local.rest, batch, key),
        lambda: at(buffers.x, row["take_x"]),
        taken=_times(local, counts.first, counts.of, FORWARD),
    )
    given = _given(local, row, batch, key)
    if not train:
        y = local.piece.run(*given, x)

        def score(means):
            return _sum(means, _means(local.after(local.rest, y, batch, key)))

        taken = _times(local, counts.last, counts.of, FORWARD)
        means = _either(last, score, lambda means: means, buffers.means, taken=taken)
        return y, replace(buffers, means=means)
    y, kept = local.piece.forward(*given, x)
    return y, replace(
        buffers,
        y=put(buffers.y, y, jnp.where(last, row["keep_y"], -1)),
        kept=[put(k, new, row["keep"]) for k, new in zip(buffers.kept, kept, strict=True)],
    )


def _times(local: Local, some: Mapping[int, int], every: Mapping[int, int], kind: int):
    """How often work is not on one piece, and how often it is, by the stage that has the piece.

    Of as many as that stage's share of all work of the kind, so that the reader's mean over devices
    becomes what this stage does.
    """
    own, total = some.get(kind, 0), every.get(kind, 0)
    return [total - own, own * local.stages], max(1, total)


def _backward(local: Local, row, buffers: Buffers, counts: Counts, factor: float):
    """The gradient before this chunk, and the buffers with this microbatch's gradients added."""
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    given = _given(local, row, batch, key)

    def from_loss(rest, means):
        y = at(buffers.y, row["keep_y"])

        def total(rest, y):
            loss, metrics = local.after(rest, y, batch, key)
            return loss.total * factor, _means((loss, metrics))

        value, back, new = jax.vjp(total, local.rest, y, has_aux=True)
        drest, dy = back(vary(jnp.ones_like(value), varying(value)))
        return dy, _sum(rest, drest), _sum(means, new)

    def from_next(rest, means):
        return at(buffers.dy, row["take_dy"]), rest, means

    dy, rest, means = _either(
        row["last"] == 1,
        from_loss,
        from_next,
        buffers.rest,
        buffers.means,
        taken=_times(local, counts.last, counts.of, BACKWARD),
    )
    kept = [at(k, row["keep"]) for k in buffers.kept]
    dx, dlayers = local.piece.backward(*given, kept, dy)

    def to_before(rest):
        _, back = jax.vjp(lambda rest: local.before(rest, batch, key), local.rest)
        return _sum(rest, back(jax.tree.map(vary, dx, jax.tree.map(varying, buffers.x)))[0])

    rest = _either(
        row["first"] == 1,
        to_before,
        lambda rest: rest,
        rest,
        taken=_times(local, counts.first, counts.of, BACKWARD),
    )
    layers = {p: add(buffers.layers[p], g, row["chunk"]) for p, g in dlayers.items()}
    return dx, replace(buffers, rest=rest, layers=layers, means=means)


def _either(predicate, then, otherwise, *operands, taken):
    """`lax.cond` whose branches' results are brought to one type; `taken` as for `_taken`."""
    outs = [jax.make_jaxpr(f)(*operands).out_avals for f in (then, otherwise)]
    axes = [varying_axes(a) | varying_axes(b) for a, b in zip(*outs, strict=True)]

    def alike(f):
        def run(*operands):
            leaves, tree = jax.tree.flatten(f(*operands))
            return jax.tree.unflatten(tree, [vary(x, a) for x, a in zip(leaves, axes, strict=True)])

        return run

    with _taken(*taken):
        return lax.cond(predicate, alike(then), alike(otherwise), *operands)


def _given(local: Local, row, batch, key):
    """This chunk's weights and what its layers are given beside them."""
    weights = {path: at(stack, row["chunk"]) for path, stack in local.layers.items()}
    asides = local.aside(local.rest, batch, key)
    piece = row["chunk"] * local.stages + lax.axis_index(AXIS)
    each = -(-local.count // local.pieces)
    missing = each * local.pieces - local.count
    real = piece * each + jnp.arange(each) < local.count if missing else None
    stacks = [
        at(a.reshape(local.pieces, -1, *a.shape[1:]), piece)
        for a in (_filled(a, missing) for a in asides[: local.stacked_asides])
    ]
    return weights, real, stacks, asides[local.stacked_asides :]


def _filled(stack, missing: int):
    """A stack with its last place repeated so many times more."""
    return jnp.concatenate([stack, *[stack[-1:]] * missing]) if missing else stack


def _means(scored):
    """A loss and its metrics as one dict."""
    loss, metrics = scored
    return {"loss": loss, **metrics}


def _sum(a, b):
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)
