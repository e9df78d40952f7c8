"""The walk of one device through a timetable, inside shard_map: work, exchange, work, exchange.

What is held between ticks is a `Held`; every kind of work takes it, and returns what is to be sent
and the `Held` that it leaves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.jax_compat import varying_axes
from jaxpar.layout.stages import AXIS
from jaxpar.spmd.value import varying
from jaxpar.step.pipeline.held import Held, add, at, put, vary
from jaxpar.step.pipeline.piece import Piece
from jaxpar.step.pipeline.timetable import BACKWARD, FORWARD, IDLE, Counts, Loop, Timetable


@dataclass(frozen=True)
class Local:
    """A loss on this device's shards: the parts of `Parts`, as functions of local arrays.

    Attributes:
        before, aside, after: as in `Parts`, taking (rest, batch, key) or (rest, y, batch, key);
            `after` gives ((Mean, metrics)).
        piece: the layers of one chunk.
        rest: path -> this device's piece of a parameter outside the layers.
        layers: path -> (chunks, layers a chunk, ...), the layers that this stage holds.
        stacked_asides: how many of `aside`'s arrays have a leading dim of all layers.
        count: how many layers there are in all; places beyond them in the last pieces do nothing.
        pieces: into how many pieces all layers are cut.
        batch_of: microbatch -> its rows on this device.
        key_of: microbatch -> its random key, or None.
    """

    before: Callable
    aside: Callable
    after: Callable
    piece: Piece
    rest: Mapping[str, jax.Array]
    layers: Mapping[str, jax.Array]
    stacked_asides: int
    count: int
    pieces: int
    stages: int
    batch_of: Callable
    key_of: Callable


def walk(local: Local, table: Timetable, *, factor: float | None = None, fill: float = 0.0) -> Held:
    """Run every tick; what is held at the end has this device's sums in it.

    Args:
        local: the loss on this device.
        table: what to do when.
        factor: what the loss's total is multiplied by before it is differentiated; None when there
            are no backward passes, and the last piece scores what it makes.
        fill: what idle stages hand on; whatever it is, no result may depend on it.
    """
    stage, train = lax.axis_index(AXIS), factor is not None
    columns = {name: jnp.asarray(t)[:, stage] for name, t in table.columns().items()}
    held = _empty(local, table, train)
    types = jax.tree.map(varying, held)
    work = {
        IDLE: lambda row, held, counts: _idle(held, fill),
        FORWARD: lambda row, held, counts: _forward(local, row, held, counts, train),
        BACKWARD: lambda row, held, counts: _backward(local, row, held, counts, factor or 0.0),
    }

    def alike(tree, types=types):
        return jax.tree.map(vary, tree, types)

    def turn(loop: Loop, held, rows):
        for position, exchange in enumerate(loop.exchanges):
            row = {name: values[position] for name, values in rows.items()}
            send, held = _work(work, loop, position, row, held, alike)
            arrivals = {pairs: lax.ppermute(send, AXIS, pairs) for pairs in exchange.permutes}
            held = replace(
                held,
                x=put(held.x, arrivals.get(exchange.onward), row["land_x"]),
                dy=put(held.dy, arrivals.get(exchange.back), row["land_dy"]),
            )
        return alike(held), None

    for loop in table.loops:
        width = len(loop.exchanges)
        ticks = slice(loop.first, loop.first + loop.turns * width)
        rows = {name: c[ticks].reshape(loop.turns, width) for name, c in columns.items()}
        held, _ = lax.scan(lambda h, r, loop=loop: turn(loop, h, r), held, rows)
    return held


def _empty(local: Local, table: Timetable, train: bool) -> Held:
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

    def nothing(tree):
        return jax.tree.map(lambda a: vary(jnp.zeros_like(a), varying(a)), tree) if train else {}

    y, kept, means = avals
    slots = table.slots
    return Held(
        x=jax.tree.map(lambda a: empty(a, slots["x"]), y),
        dy=jax.tree.map(lambda a: empty(a, slots["dy"]), y),
        y=jax.tree.map(lambda a: empty(a, slots["keep_y"]), y),
        kept=[empty(k, slots["keep"]) for k in kept],
        rest=nothing(local.rest),
        layers=nothing(local.layers),
        means=jax.tree.map(empty, means),
        idle=vary(jnp.zeros((), jnp.float32), {AXIS}),
    )


def _work(work, loop: Loop, position: int, row, held, alike):
    """Do what the row says; every kind of work gives results of one type."""
    kinds, counts = sorted(loop.kinds), loop.counts[position]

    def branch(kind):
        def run(held):
            send, after = work[kind](row, held, counts)
            return alike(send, jax.tree.map(varying, held.x)), alike(after)

        return run

    if len(kinds) == 1:
        return branch(kinds[0])(held)
    index = sum((row["kind"] > kind).astype(jnp.int32) for kind in kinds[:-1])
    with _taken([counts.of.get(kind, 0) for kind in kinds], sum(counts.of.values())):
        return lax.switch(index, [branch(kind) for kind in kinds], held)


def _taken(times: list[int], total: int):
    """A name scope that tells a reader of the program how often each branch is taken, in order."""
    return jax.named_scope(f"taken({','.join(map(str, times))};{total})")


def _idle(held: Held, fill: float):
    send = jax.tree.map(lambda x: jnp.full(x.shape[1:], fill, x.dtype), held.x)
    return send, replace(held, idle=held.idle + 1)


def _forward(local: Local, row, held: Held, counts: Counts, train: bool):
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    last = row["last"] == 1
    x = _either(
        row["first"] == 1,
        lambda: local.before(local.rest, batch, key),
        lambda: at(held.x, row["take_x"]),
        taken=_times(local, counts.first, counts.of, FORWARD),
    )
    given = _given(local, row, batch, key)
    if not train:
        y = local.piece.run(*given, x)

        def score(means):
            return _sum(means, _means(local.after(local.rest, y, batch, key)))

        taken = _times(local, counts.last, counts.of, FORWARD)
        means = _either(last, score, lambda means: means, held.means, taken=taken)
        return y, replace(held, means=means)
    y, kept = local.piece.forward(*given, x)
    return y, replace(
        held,
        y=put(held.y, y, jnp.where(last, row["keep_y"], -1)),
        kept=[put(k, new, row["keep"]) for k, new in zip(held.kept, kept, strict=True)],
    )


def _times(local: Local, some: Mapping[int, int], every: Mapping[int, int], kind: int):
    """How often work is not on one piece, and how often it is, by the stage that has the piece.

    Of as many as that stage's share of all work of the kind, so that the reader's mean over devices
    becomes what this stage does.
    """
    own, total = some.get(kind, 0), every.get(kind, 0)
    return [total - own, own * local.stages], max(1, total)


def _backward(local: Local, row, held: Held, counts: Counts, factor: float):
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    given = _given(local, row, batch, key)

    def from_loss(rest, means):
        y = at(held.y, row["keep_y"])

        def total(rest, y):
            loss, metrics = local.after(rest, y, batch, key)
            return loss.total * factor, _means((loss, metrics))

        value, back, new = jax.vjp(total, local.rest, y, has_aux=True)
        drest, dy = back(vary(jnp.ones_like(value), varying(value)))
        return dy, _sum(rest, drest), _sum(means, new)

    def from_next(rest, means):
        return at(held.dy, row["take_dy"]), rest, means

    dy, rest, means = _either(
        row["last"] == 1,
        from_loss,
        from_next,
        held.rest,
        held.means,
        taken=_times(local, counts.last, counts.of, BACKWARD),
    )
    kept = [at(k, row["keep"]) for k in held.kept]
    dx, dlayers = local.piece.backward(*given, kept, dy)

    def to_before(rest):
        _, back = jax.vjp(lambda rest: local.before(rest, batch, key), local.rest)
        return _sum(rest, back(jax.tree.map(vary, dx, jax.tree.map(varying, held.x)))[0])

    rest = _either(
        row["first"] == 1,
        to_before,
        lambda rest: rest,
        rest,
        taken=_times(local, counts.first, counts.of, BACKWARD),
    )
    layers = {p: add(held.layers[p], g, row["chunk"]) for p, g in dlayers.items()}
    return dx, replace(held, rest=rest, layers=layers, means=means)


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
    loss, metrics = scored
    return {"loss": loss, **metrics}


def _sum(a, b):
    return jax.tree.map(jnp.add, a, b)
