"""What is done to weights and to state as they are stored, before they are gathered for use."""

from __future__ import annotations

import numpy as np

from jaxpar.core.varying import varying
from jaxpar.jaxprs.rules import rule_of
from jaxpar.spmd.agreement import agree, local_params, meet, placement, spread
from jaxpar.spmd.value import Deferred, Value


def keep_stored(frame, eqn, fac, operands):
    """A slice or a narrowing cast, done on a stored weight's shards; None where that cannot be."""
    if not rule_of(eqn).keeps_stored or isinstance(operands[0], Deferred):
        return None
    weight, *rest = operands
    if weight.use is None or any(np.ndim(v.array) for v in rest):
        return None
    if eqn.outvars[0].aval.dtype.itemsize > eqn.invars[0].aval.dtype.itemsize:
        return None  # a wider copy would travel as more bytes than the weight itself
    after = []
    for held in (weight.use, weight.dims):
        sharded, complete = spread(fac.operands[0], held, fac, frame.state.sizes)
        if not complete or any(f in fac.whole for f in sharded):
            return None
        agreed = agree(frame, fac, [Value(weight.array, held), *rest])
        if agreed != sharded:
            return None
        after.append(placement(fac.results[0], sharded))
    axes = varying(weight.array).union(*(varying(v.array) for v in rest))
    arrays = [frame.vary(v, axes).array for v in operands]
    params = local_params(frame, eqn, fac, sharded, arrays)
    use, dims = after
    return [Value(eqn.primitive.bind(*arrays, **params), dims, use, weight.whose)]


def on_stored(frame, eqn, fac, operands):
    """What is done to each element of state, done on the shards that it is stored in; else None.

    A running average of a weight is so never gathered for its own sake.
    """
    if rule_of(eqn).kind not in ("elementwise", "cast"):
        return None
    for k, state in enumerate(operands):
        if getattr(state, "use", None) is None or state.whose not in frame.state.kept:
            continue
        split, complete = spread(fac.operands[k], state.dims, fac, frame.state.sizes)
        use, whole = spread(fac.operands[k], state.use, fac, frame.state.sizes)
        if not (complete and whole) or frame.global_shape(state) != eqn.outvars[0].aval.shape:
            continue
        arrays = meet(frame, fac, operands, split)
        result = eqn.primitive.bind(*arrays, **local_params(frame, eqn, fac, split, arrays))
        (made,) = fac.results
        return [Value(result, placement(made, split), placement(made, use), state.whose)]
    return None
