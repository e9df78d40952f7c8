"""How the operands of an equation agree on a split of its factors, and their shards in it."""

from __future__ import annotations

import numpy as np

from jaxpar.core.varying import varying
from jaxpar.jaxprs.rules import Factors, rule_of
from jaxpar.spmd.value import Deferred, Placement, local_shape


def meet(frame, fac, operands, split):
    """The operands' local arrays, sharded as `split` says and varying along the same axes."""
    placed = [
        frame.place(v, placement(fac_dims, split))
        for v, fac_dims in zip(operands, fac.operands, strict=True)
    ]
    axes = frozenset().union(*(varying(v.array) for v in placed))
    return [frame.vary(v, axes).array for v in placed]


def placement(dims, split) -> Placement:
    """The placement of an array whose dims are made of these factors."""
    return tuple(tuple(axis for f in fs for axis in split.get(f, ())) for fs in dims)


def spread(dims, held: Placement, fac: Factors, sizes) -> tuple[dict, bool]:
    """Factor -> the axes that a placement of these dims shards it over; and whether that is all."""
    sharded: dict[int, tuple[str, ...]] = {}
    complete = True
    for fs, axes in zip(dims, held, strict=True):
        left = list(axes)
        for f in fs:
            size = fac.sizes[f]
            while left and size > 1 and size % sizes[left[0]] == 0:
                size //= sizes[left[0]]
                sharded[f] = (*sharded.get(f, ()), left.pop(0))
            if size != 1:
                break
        complete = complete and not left
    return sharded, complete


def agree(frame, fac: Factors, operands) -> dict[int, tuple[str, ...]]:
    """Factor of an equation -> the axes that it is sharded over.

    The largest operand comes first, since moving it would cost most; an axis goes to one factor
    only; a factor that must be replicated gets none.
    """
    sizes = frame.state.sizes

    def weight(i):
        v = operands[i]
        return 0 if isinstance(v, Deferred) else -np.size(v.array)

    split: dict[int, tuple[str, ...]] = {}
    for i in sorted(range(len(operands)), key=weight):
        sharded, _ = spread(fac.operands[i], operands[i].dims, fac, sizes)
        for f, axes in sharded.items():
            have = split.get(f, ())
            taken = {a for g, other in split.items() if g != f for a in other}
            if f in fac.whole or axes[: len(have)] != have:
                continue
            free = []
            for axis in axes:
                if axis in taken:
                    break
                free.append(axis)
            if len(free) > len(have):
                split[f] = tuple(free)
    # [B, S] merged into B*S: S can stay split only where B is split to the last row, as a shard
    # is one contiguous run.
    for fs in (fs for dims in (*fac.operands, *fac.results) for fs in dims):
        contiguous = True
        for f in fs:
            if not contiguous:
                split.pop(f, None)
            contiguous = contiguous and frame.state.count(split.get(f, ())) == fac.sizes[f]
    return split


def local_params(frame, eqn, fac, split, arrays):
    """An equation's parameters, their sizes those of one device's shard."""
    params, rule = dict(eqn.params), rule_of(eqn)
    for key in ("sharding", "out_sharding"):
        if key in params:
            params[key] = None
    if rule.on_shard is None:
        return params
    shape = eqn.outvars[0].aval.shape
    result = local_shape(shape, placement(fac.results[0], split), frame.state.sizes)
    return rule.on_shard(params, eqn, [np.shape(x) for x in arrays], result)
