"""Callbacks that do something: made once, on the first device, of whole arrays."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxpar.core.varying import as_varying
from jaxpar.spmd.value import Value, replicated


def once(frame, eqn, operands, live):
    """What a callback returns, on every device; only the first one makes it."""
    del live
    axes = tuple(frame.state.sizes)
    whole = [
        frame.place(frame.settle(v), replicated(atom.aval.ndim)).array
        for v, atom in zip(operands, eqn.invars, strict=True)
    ]

    def call():
        made = eqn.primitive.bind(*whole, **eqn.params)
        return [as_varying(x.astype(_summed(x.dtype)), axes) for x in made]

    def nothing():
        avals = [v.aval for v in eqn.outvars]
        return [as_varying(jnp.zeros(a.shape, _summed(a.dtype)), axes) for a in avals]

    results = lax.cond(lax.axis_index(axes) == 0, call, nothing) if axes else call()
    values = []
    for array, var in zip(results, eqn.outvars, strict=True):
        if axes:
            array = lax.psum(array, axes)
            frame.state.note("all-reduce", axes, "one device makes the call for all", array)
        values.append(Value(array.astype(var.aval.dtype), replicated(var.aval.ndim)))
    return values


def _summed(dtype):
    """The dtype in which a result is summed over devices: devices sum no booleans."""
    return jnp.dtype("int32") if jnp.issubdtype(dtype, jnp.bool_) else dtype


RULES = dict.fromkeys(("debug_callback", "debug_print", "io_callback"), once)
"""Primitive -> how it is run on shards; what is pure may be called on every device."""
