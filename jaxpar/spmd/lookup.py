"""Lookup in a table that may be sharded along the looked-up dim (an embedding, logits).

Each device looks up what it holds and puts zero elsewhere; the sum over devices is the row. Indices
outside the whole table do what the lookup's own mode says.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import GatherScatterMode

from jaxpar.jaxprs.rules import factors
from jaxpar.spmd.agreement import agree, local_params, meet, placement
from jaxpar.spmd.rules import combine, compute
from jaxpar.spmd.value import Value


def gather(frame, eqn, operands, live):
    """The results of a gather from a table that may be sharded along the looked-up dim.

    Each device looks up what it holds, puts zero elsewhere, and the sum over devices is the row.
    """
    numbers = eqn.params["dimension_numbers"]
    fac = factors(eqn)
    operands = [frame.used(v) for v in operands]
    looked_up = {
        fac.operands[0][d][0]: k
        for k, d in enumerate(numbers.start_index_map)
        if d in numbers.collapsed_slice_dims
    }
    fac = replace(
        fac,
        whole=fac.whole - set(looked_up),
        reduced=(*fac.reduced, *((f, "sum") for f in looked_up)),
    )
    split = agree(frame, fac, operands)
    if not any(split.get(f) for f in looked_up):
        return compute(frame, eqn, fac, operands, live)
    table, indices = meet(frame, fac, operands, split)
    params = local_params(frame, eqn, fac, split, [table])
    limits = np.asarray(
        [
            eqn.invars[0].aval.shape[d] - eqn.params["slice_sizes"][d]
            for d in numbers.start_index_map
        ],
        indices.dtype,
    )
    # Spelled out to the indices' shape: the user may run JAX with rank promotion refused.
    limits = lax.broadcast_in_dim(limits, indices.shape, (indices.ndim - 1,))
    mode, params["mode"] = params["mode"], GatherScatterMode.CLIP
    outside = None
    if mode == GatherScatterMode.FILL_OR_DROP:
        # Read before the cast to varying: the mask must not vary more than the sum it is put on.
        asked = frame.place(operands[1], placement(fac.operands[1], split)).array
        outside = ((asked < 0) | (asked > limits)).any(-1)
    indices = jnp.clip(indices, 0, limits)
    mine = jnp.ones(indices.shape[:-1], bool)
    for f, k in looked_up.items():
        if axes := split.get(f):
            size = fac.sizes[f] // frame.state.count(axes)
            here = indices[..., k] - (lax.axis_index(axes) * size).astype(indices.dtype)
            mine &= (here >= 0) & (here < size)
            indices = indices.at[..., k].set(jnp.clip(here, 0, size - 1))
    rows = eqn.primitive.bind(table, indices, **params)
    batch = [d for d in range(rows.ndim) if d not in numbers.offset_dims]

    def spread_out(mask):
        return lax.broadcast_in_dim(mask, rows.shape, batch)

    rows = jnp.where(spread_out(mine), rows, jnp.zeros_like(rows))
    (value,) = combine(frame, eqn, fac, split, [rows], live)
    if outside is not None:
        fill = _fill_value(params.get("fill_value"), value.array.dtype)
        value = Value(jnp.where(spread_out(outside), fill, value.array), value.dims)
    return [value]


def _fill_value(given, dtype):
    """What a gather returns out of bounds: the value given, else JAX's default for the dtype."""
    if given is not None:
        return jnp.asarray(given, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    if jnp.issubdtype(dtype, jnp.bool_):
        return jnp.asarray(True)
    info = jnp.iinfo(dtype)
    return jnp.asarray(info.min if jnp.issubdtype(dtype, jnp.signedinteger) else info.max, dtype)


RULES = {"gather": gather}
