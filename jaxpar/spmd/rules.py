"""First-order equations on shards: agree on a split, move the operands there, compute, combine.

One rule serves nearly every primitive, through the table of factors; the exceptions here are what
need not be made yet (broadcast, iota) and weights that stay sharded a little longer.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

from jaxpar.core.annotations import LEAVING, NAMED, USED
from jaxpar.core.mesh import axes_of
from jaxpar.jaxprs.rules import factors, rule_of
from jaxpar.spmd.agreement import agree, local_params, meet, placement
from jaxpar.spmd.extremes import extreme
from jaxpar.spmd.stored import keep_stored, on_stored
from jaxpar.spmd.value import Deferred, Value, placement_of


def apply(frame, eqn, operands, live):
    """The results of a first-order equation on shards, by its rule's factors."""
    fac = factors(eqn)
    if (kept := keep_stored(frame, eqn, fac, operands)) is not None:
        return kept
    if (kept := on_stored(frame, eqn, fac, operands)) is not None:
        return kept
    if eqn.primitive.name == "convert_element_type" and isinstance(operands[0], Value):
        # Flax casts one activation once per layer that reads it; shared, it is cast to varying
        # once, and its gradient summed once.
        key = (eqn.params["new_dtype"], eqn.params.get("weak_type"))
        return frame._once(
            operands[0], "convert", key, lambda: compute(frame, eqn, fac, operands, live)
        )
    return compute(frame, eqn, fac, operands, live)


def compute(frame, eqn, fac, operands, live):
    """The results of an equation on shards, with the factors given."""
    operands = [frame.used(v) for v in operands]
    split = agree(frame, fac, operands)
    arrays = meet(frame, fac, operands, split)
    params = local_params(frame, eqn, fac, split, arrays)
    if live[0] and any(k in ("max", "min") and split.get(f) for f, k in fac.reduced):
        return [_extreme(frame, eqn, fac, split, arrays[0])]
    results = eqn.primitive.bind(*arrays, **params)
    results = results if eqn.primitive.multiple_results else [results]
    return combine(frame, eqn, fac, split, results, live)


def combine(frame, eqn, fac, split, results, live):
    """Local results as Values, reduced over the axes of contracted dims."""
    kinds = {kind for f, kind in fac.reduced if split.get(f)}
    axes = tuple(axis for f, _ in fac.reduced for axis in split.get(f, ()))
    values = []
    for array, dims, var, alive in zip(results, fac.results, eqn.outvars, live, strict=True):
        placed = placement(dims, split)
        if axes:
            (kind,) = kinds
            left = axes
            if kind == "sum" and var in frame.unsummed:
                left = _left_apart(frame, var, axes)
            elif kind == "sum" and frame.target is not None:
                array, placed, left = _scattered(frame, eqn, axes, array, placed)
            if left:
                array = _reduce(frame, eqn, kind, left, array, alive)
        values.append(Value(array, placed))
        assert var.aval.shape == frame.global_shape(values[-1]), (eqn, values[-1])
    return values


def _left_apart(frame, var, axes):
    """The axes over which a result is yet to be summed, less those where devices keep parts."""
    allowed = frame.unsummed[var][0]
    parts = tuple(axis for axis in axes if axis in allowed)
    frame.unsummed[var][1] = parts
    return tuple(axis for axis in axes if axis not in parts)


def _extreme(frame, eqn, fac, split, array):
    """The largest or smallest along dims of which some are sharded, where it has a gradient."""
    axes = tuple(axis for f, _ in fac.reduced for axis in split.get(f, ()))
    array = extreme(fac.reduced[0][1], tuple(eqn.params["axes"]), axes, array)
    frame.state.note("all-reduce", axes, _reason(eqn, axes), array)
    return Value(array, placement(fac.results[0], split))


def _reason(eqn, axes) -> str:
    """Why an equation needs a collective over these axes, for the list of collectives."""
    over = " and ".join(f"'{axis}'" for axis in axes)
    what = "contracts" if rule_of(eqn).kind in ("product", "lookup") else "reduces"
    return f"{eqn.primitive.name} {what} a dim that is sharded over {over}"


def _scattered(frame, eqn, axes, array, placed):
    """Sum over those axes that shard the result where it goes next, each device its own shard.

    Returns:
        The array, its placement, and the axes over which it has yet to be summed.
    """
    left = list(axes)
    for dim, (have, want) in enumerate(zip(placed, frame.target, strict=True)):
        more = want[len(have) :] if want[: len(have)] == have else ()
        if not more or not set(more) <= set(left):
            continue
        array = lax.psum_scatter(array, more, scatter_dimension=dim, tiled=True)
        placed = (*placed[:dim], want, *placed[dim + 1 :])
        left = [axis for axis in left if axis not in more]
        frame.state.note("reduce-scatter", more, _reason(eqn, more), array)
    return array, placed, tuple(left)


def _reduce(frame, eqn, kind, axes, array, alive):
    """An array's reduction over devices along `axes`; `alive` if it has a gradient."""
    reason = _reason(eqn, axes)
    if kind == "sum":
        result = lax.psum(array, axes)
    elif kind in ("max", "min") and not alive and array.dtype != bool:
        largest = lax.pmax if kind == "max" else lax.pmin
        result = largest(lax.stop_gradient(array), axes)
    else:
        # JAX has no product or logical reduction over devices: bring the candidates together and
        # reduce once more.
        together = lax.all_gather(array, axes, axis=0, to="invarying")
        frame.state.note("all-gather", axes, reason, together)
        return {"max": jnp.max, "min": jnp.min, "prod": jnp.prod, "and": jnp.all, "or": jnp.any}[
            kind
        ](together, axis=0)
    frame.state.note("all-reduce", axes, reason, result)
    return result


def broadcast(frame, eqn, operands, live):
    """A Deferred broadcast: made when it is known which shard is needed."""
    source = operands[0]
    shape, where = eqn.params["shape"], tuple(eqn.params["broadcast_dimensions"])
    if isinstance(source, Deferred) and source.source is not None:
        where = tuple(where[at] for at in source.where)
        source = source.source
    elif isinstance(source, Deferred):
        source = frame.settle(source)
    held = source.use or source.dims
    dims: list[tuple[str, ...]] = [()] * len(shape)
    for size, axes, at in zip(frame.global_shape(source), held, where, strict=True):
        dims[at] = axes if size == shape[at] else ()
    return [Deferred(source, tuple(shape), tuple(dims), where, eqn.outvars[0].aval.dtype)]


def iota(frame, eqn, operands, live):
    """A Deferred iota."""
    shape = tuple(eqn.params["shape"])
    dtype, along = np.dtype(eqn.params["dtype"]), eqn.params["dimension"]
    return [Deferred(None, shape, ((),) * len(shape), (), dtype, along)]


def identity(frame, eqn, operands, live):
    """The operands: an equation that only advises the partitioner is dropped."""
    return operands


def constrained(frame, eqn, operands, live):
    """Move a value to a sharding constraint's placement, if that is on this mesh.

    A constraint on another mesh is a user's advice to XLA about other devices: it is dropped.
    """
    sharding = eqn.params["sharding"]
    if not isinstance(sharding, NamedSharding):
        return operands
    entries = [*sharding.spec, *[None] * (eqn.invars[0].aval.ndim - len(sharding.spec))]
    dims = tuple(axes_of(entry) for entry in entries)
    known = frame.state.sizes.items() <= dict(sharding.mesh.shape).items()
    if not known or not {axis for axes in dims for axis in axes} <= frame.state.sizes.keys():
        return operands
    return [frame.place(operands[0], dims)]


def named(frame, eqn, operands, live):
    """Move an array that the function names to the placement that its layout gives it.

    What enters a part of a block stays as it is between the parts until something reads it: the
    gather is then that reader's, and the transpose of it a reduce-scatter.
    """
    if frame.state.place is None:
        return operands
    (value,), var, says = operands, eqn.outvars[0], eqn.params["says"]
    sharded = frame.state.place(eqn.params["names"], tuple(var.aval.shape))
    used, between = (placement_of(s, var.aval.ndim) for s in (sharded.used, sharded.between))
    if says == USED:
        return [frame.place(value, used)]
    value = frame.place(value, between)
    if says == LEAVING or used == between:
        return [value]
    return [Value(value.array, between, used)]


RULES = {
    "": apply,
    NAMED: named,
    "broadcast_in_dim": broadcast,
    "iota": iota,
    "sharding_constraint": constrained,
    **dict.fromkeys(("reshard", "device_put"), identity),
}
