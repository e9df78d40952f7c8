"""What a stage does in a tick: a forward pass of one of its pieces, or a backward pass.

The first piece begins with what is before the layers, the last ends with the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxpar.core.jax_compat import varying_axes
from jaxpar.core.scopes import taken_scope, to_all_scope
from jaxpar.core.varying import varying
from jaxpar.layout.stages import AXIS
from jaxpar.step.pipeline.buffers import Buffers, at, put, set_at, vary
from jaxpar.step.pipeline.head import add_share
from jaxpar.step.pipeline.piece import Piece
from jaxpar.step.pipeline.timetable import BACKWARD, FORWARD, Counts


@dataclass(frozen=True)
class Shared:
    """What comes after the layers, as all stages compute it at once.

    Attributes:
        after: (rest, y, batch, key) -> (Mean, metrics).
        rest: path -> a parameter outside the layers, of those in `cuts` this stage's share.
        cuts: path -> the dim that the stages share.
    """

    after: Callable
    rest: Mapping[str, jax.Array]
    cuts: Mapping[str, int]


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
        shared: what all stages compute after the layers; None where the last does it alone.
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
    shared: Shared | None = None


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        kind: of the timetable's.
        changes: which of the `Buffers` it changes.
        do: (local, row, buffers, counts) -> (what is to be sent, {name: a changed buffer}).
    """

    kind: int
    changes: tuple[str, ...]
    do: Callable[[Local, Any, Buffers, Counts], tuple[Any, dict[str, Any]]]


def works(factor: float | None) -> tuple[Work, ...]:
    """All kinds of work; with no `factor` for the loss forward passes alone, which score."""
    if factor is None:
        return (Work(FORWARD, ("means",), _scored),)
    backward = partial(_backward, factor=factor)
    return (
        Work(FORWARD, ("y", "kept"), _forward),
        Work(BACKWARD, ("rest", "layers", "means"), backward),
    )


def _forward(local: Local, row, buffers: Buffers, counts: Counts):
    """The activation after this piece, and the buffers with what backward needs of it."""
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    x = _entering(local, row, buffers, counts, batch, key)
    y, kept = local.piece.forward(*given(local, row, batch, key), x, buffers.kept, row["keep"])
    slot = jnp.where(row["last"] == 1, row["keep_y"], -1)
    return y, {"y": put(buffers.y, y, slot), "kept": kept}


def _scored(local: Local, row, buffers: Buffers, counts: Counts):
    """The activation after this piece, and the means with the loss of it if it is the last."""
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])
    x = _entering(local, row, buffers, counts, batch, key)
    y = local.piece.run(*given(local, row, batch, key), x)

    def score(means):
        return _sum(means, means_of(local.after(local.rest, y, batch, key)))

    taken = _times(local, counts.last, counts.of, FORWARD)
    means = _either(row["last"] == 1, score, lambda means: means, buffers.means, taken=taken)
    return y, {"means": means}


def _entering(local: Local, row, buffers: Buffers, counts: Counts, batch, key):
    """The activation before this piece: made of the batch for the first, else what has arrived."""
    return _either(
        row["first"] == 1,
        lambda: local.before(local.rest, batch, key),
        lambda: at(buffers.x, row["take_x"]),
        taken=_times(local, counts.first, counts.of, FORWARD),
    )


def _backward(local: Local, row, buffers: Buffers, counts: Counts, *, factor: float):
    """The gradient before this piece, and the buffers with this microbatch's gradients added."""
    batch, key = local.batch_of(row["microbatch"]), local.key_of(row["microbatch"])

    dy, rest, means = _from_after(local, row, buffers, counts, batch, key, factor)
    weights = given(local, row, batch, key)
    held = (buffers.kept, row["keep"])
    dx, layers = local.piece.backward(*weights, *held, dy, buffers.layers)

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
    return dx, {"rest": rest, "layers": layers, "means": means}


def _from_after(local: Local, row, buffers: Buffers, counts: Counts, batch, key, factor: float):
    """(the gradient after this piece, the gradients of `rest`, the means): of the last piece from
    the loss, which all stages have taken if it is shared; of others as it has arrived."""
    taken = _times(local, counts.last, counts.of, BACKWARD)
    is_last = row["last"] == 1

    def kept():
        return at(buffers.y, row["keep_y"])

    def arrived():
        return at(buffers.dy, row["take_dy"])

    if local.shared is not None:
        return _either(is_last, kept, arrived, taken=taken), buffers.rest, buffers.means

    def from_loss(rest, means):
        def total(rest, y):
            loss, metrics = local.after(rest, y, batch, key)
            return loss.total * factor, means_of((loss, metrics))

        value, back, new = jax.vjp(total, local.rest, kept(), has_aux=True)
        drest, dy = back(vary(jnp.ones_like(value), varying(value)))
        return dy, _sum(rest, drest), _sum(means, new)

    def from_next(rest, means):
        return arrived(), rest, means

    return _either(is_last, from_loss, from_next, buffers.rest, buffers.means, taken=taken)


def scored_by_all(local: Local, end, buffers: Buffers, factor: float) -> dict[str, Any]:
    """The buffers that change when all stages compute the loss of what the last has just made.

    Of the slot in which that waits for its loss, it is the gradient that is left.

    Args:
        local: with a `shared`.
        end: the last stage's row of the timetable, the same on all.
        buffers: of this stage.
        factor: what the loss's total is multiplied by before it is differentiated.
    """
    shared, is_last = local.shared, lax.axis_index(AXIS) == local.stages - 1
    assert shared is not None
    batch, key = local.batch_of(end["microbatch"]), local.key_of(end["microbatch"])

    def of_last(tree):
        return jax.tree.map(lambda x: jnp.where(is_last, x, jnp.zeros_like(x)), tree)

    with to_all_scope():
        y = jax.tree.map(lambda x: lax.psum(x, AXIS), of_last(at(buffers.y, end["keep_y"])))

    def total(rest, y):
        loss, metrics = shared.after(rest, y, batch, key)
        return loss.total * factor, means_of((loss, metrics))

    value, back, new = jax.vjp(total, shared.rest, y, has_aux=True)
    drest, dy = back(vary(jnp.ones_like(value), varying(value)))
    rest = dict(buffers.rest)
    for path, more in drest.items():
        cut = shared.cuts.get(path)
        rest[path] = rest[path] + of_last(more) if cut is None else add_share(rest[path], more, cut)
    return {
        "y": jax.tree.map(lambda slots, new: set_at(slots, new, end["keep_y"]), buffers.y, dy),
        "rest": rest,
        "means": _sum(buffers.means, of_last(new)),
    }


def _times(local: Local, some: Mapping[int, int], every: Mapping[int, int], kind: int):
    """How often work is not on one piece, and how often it is, by the stage that has the piece.

    Of as many as that stage's share of all work of the kind, so that the reader's mean over devices
    becomes what this stage does.
    """
    own, total = some.get(kind, 0), every.get(kind, 0)
    return [total - own, own * local.stages], max(1, total)


def _either(predicate, then, otherwise, *operands, taken):
    """`lax.cond` whose branches' results are brought to one type; `taken` as for `taken_scope`."""
    outs = [jax.make_jaxpr(f)(*operands).out_avals for f in (then, otherwise)]
    axes = [varying_axes(a) | varying_axes(b) for a, b in zip(*outs, strict=True)]

    def alike(f):
        def run(*operands):
            leaves, tree = jax.tree.flatten(f(*operands))
            return jax.tree.unflatten(tree, [vary(x, a) for x, a in zip(leaves, axes, strict=True)])

        return run

    with taken_scope(*taken):
        return lax.cond(predicate, alike(then), alike(otherwise), *operands)


def given(local: Local, row, batch, key):
    """The weights of all chunks, which chunk it is, and what its layers are given beside them."""
    asides = local.aside(local.rest, batch, key)
    piece = row["chunk"] * local.stages + lax.axis_index(AXIS)
    each = -(-local.count // local.pieces)
    missing = each * local.pieces - local.count
    real = piece * each + jnp.arange(each) < local.count if missing else None
    stacks = [
        at(a.reshape(local.pieces, -1, *a.shape[1:]), piece)
        for a in (_filled(a, missing) for a in asides[: local.stacked_asides])
    ]
    return local.layers, row["chunk"], real, stacks, asides[local.stacked_asides :]


def _filled(stack, missing: int):
    """A stack with its last place repeated so many times more."""
    return jnp.concatenate([stack, *[stack[-1:]] * missing]) if missing else stack


def means_of(scored):
    """A loss and its metrics as one dict."""
    loss, metrics = scored
    return {"loss": loss, **metrics}


def _sum(a, b):
    """The sum of two trees."""
    return jax.tree.map(jnp.add, a, b)
