"""One element picked along a dim, such as a label's score: by comparing instead of by indexing.

The gradient of a pick by index is an array of zeros with one element set, in memory, in the type of
the scores. That of a comparison is fused with what else is done to the scores: for 8,192 tokens and
32,000 words a gigabyte less. And along a sharded dim a comparison needs one sum over devices, where
XLA's partitioner may gather the scores to index them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.sharding import AbstractMesh

from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.interpreter import Here, Interpreter


def compared_where_picked(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same function, its picks of one element along a dim by comparing; itself without any.

    >>> scores, labels = jnp.ones((2, 8)), jnp.zeros((2, 1), int)
    >>> picked = jax.make_jaxpr(lambda x, at: jnp.take_along_axis(x, at, 1))(scores, labels)
    >>> "gather" in str(picked), "gather" in str(compared_where_picked(picked))
    (True, False)
    """
    if not any(is_pick(eqn) for eqn, _ in equations(closed)):
        return closed
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        return jax.make_jaxpr(lambda *x: _Comparer().run(closed.jaxpr, closed.consts, x))(*shapes)


def is_pick(eqn: Any) -> bool:
    """Whether an equation takes one float along one dim, for each place along all others."""
    if eqn.primitive is not lax.gather_p:
        return False
    scores, at = (atom.aval for atom in eqn.invars)
    numbers, others = eqn.params["dimension_numbers"], scores.ndim - 1
    return (
        jnp.issubdtype(scores.dtype, jnp.floating)
        and len(numbers.collapsed_slice_dims) == 1
        and numbers.start_index_map == numbers.collapsed_slice_dims
        and scores.shape[numbers.collapsed_slice_dims[0]] > 1
        and len(numbers.operand_batching_dims) == others
        # For each of the others there is one index.
        and at.size * scores.shape[numbers.collapsed_slice_dims[0]] == scores.size
    )


class _Comparer(Interpreter):
    """Evaluates a jaxpr, its picks by comparing."""

    def leaf(self, eqn, operands, here: Here):
        """An equation's results."""
        if is_pick(eqn):
            scores, at = operands
            return [_picked(scores, at, eqn)]
        return super().leaf(eqn, operands, here)


def _picked(scores: jax.Array, at: jax.Array, eqn: Any) -> jax.Array:
    """What a pick takes of `scores`, (..., classes, ...), at the indices `at`."""
    p = eqn.params
    numbers, (dim,) = p["dimension_numbers"], p["dimension_numbers"].collapsed_slice_dims
    count = scores.shape[dim]
    # The indices' batching dims, in the order of the scores' own.
    places = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    others = [d for d in range(scores.ndim) if d != dim]
    single = [d for d in range(at.ndim) if d not in places.values()]
    index = lax.squeeze(
        at.transpose([*(places[d] for d in others), *single]), range(len(others), at.ndim)
    )
    if p["mode"] == lax.GatherScatterMode.CLIP:
        index = jnp.clip(index, 0, count - 1)
    classes = lax.broadcasted_iota(index.dtype, scores.shape, dim)
    own = classes == jnp.expand_dims(index, dim)
    # `where`, not a product: a score elsewhere may be infinite.
    picked = jnp.sum(jnp.where(own, scores, 0), axis=dim)
    if p["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        fill = jnp.nan if p["fill_value"] is None else p["fill_value"]
        picked = jnp.where((index >= 0) & (index < count), picked, fill).astype(scores.dtype)
    # The result has its dims in the order of the indices'.
    order = sorted(range(len(others)), key=lambda k: places[others[k]])
    return picked.transpose(order).reshape(eqn.outvars[0].aval.shape)
