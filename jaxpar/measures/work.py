"""Work: multiply-adds of the loss and its gradients, counted in their jaxpr, recomputation apart.

Counted are products: matrix products, convolutions and grouped products, loops as often as they
turn. What the model's own rematerialization computes a second time is told apart. An optimizer's
products are not counted, nor what a mode recomputes beside (it recomputes no product).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

from jaxpar.attention.fused import FUSED
from jaxpar.attention.record import Exchange, Whole
from jaxpar.core import hooks
from jaxpar.core.jax_compat import open_jaxpr
from jaxpar.core.mesh import axes_of
from jaxpar.inference.traced import KEY, TracedLoss
from jaxpar.jaxprs.equations import equations, turns
from jaxpar.jaxprs.rules import rule_of
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS as STAGES
from jaxpar.layout.stages import runs_in_stages
from jaxpar.models.record import role_of
from jaxpar.step.filled import Filled, differentiated, filled_loss
from jaxpar.step.record import Step
from jaxpar.strategies.record import REPLICA


@dataclass(frozen=True)
class Work:
    """What one step computes, and of what.

    Attributes:
        flops: dtype of the operands -> multiply-adds times two of the loss and its gradients, of
            the whole batch, each product counted once, those of all scores of attention too.
        computed_flops: the same as the program computes them: fused attention leaves out what a
            causal mask drops, and makes the scores again in backward.
        recomputed_flops: the same of what rematerialization computes again.
        sharing: how many devices share the work: the others of the mesh do the same as these.
        rows: of the batch.
        tokens: positions of all rows; 0 for a model without a sequence.
        is_exact: whether no loop ends by a condition; else each is counted as one turn.
    """

    flops: Mapping[str, int]
    computed_flops: Mapping[str, int]
    recomputed_flops: Mapping[str, int]
    sharing: int
    rows: int
    tokens: int
    is_exact: bool

    @property
    def device_flops(self) -> float:
        """FLOPs of a step without recomputation that each device does: the mean over devices."""
        return sum(self.flops.values()) / self.sharing

    @property
    def device_recomputed_flops(self) -> float:
        """FLOPs of recomputation in a step that each device does: the mean over devices."""
        return sum(self.recomputed_flops.values()) / self.sharing

    def record(self) -> dict[str, Any]:
        """The work as one JSON-ready dict."""
        return {
            "rows_per_step": self.rows,
            "tokens_per_step": self.tokens or None,
            "flops_per_step": sum(self.flops.values()),
            "computed_flops_per_step": sum(self.computed_flops.values()),
            "recomputed_flops_per_step": sum(self.recomputed_flops.values()),
            "flops_by_dtype": dict(self.flops),
            "recomputed_flops_by_dtype": dict(self.recomputed_flops),
            "devices_sharing": self.sharing,
            "flops_per_device_per_step": self.device_flops,
            "recomputed_flops_per_device_per_step": self.device_recomputed_flops,
            "is_exact": self.is_exact,
        }


def work(step: Step) -> Work:
    """Count the work of a step; traced once for a model and its rows, nothing compiled."""
    layout, part = step.layout, step.asked.microbatch
    counted = _counted(part, step.asked.loss)
    # Of each part of the batch, be it a microbatch or one replica's: the same.
    parts = layout.model.batch_size // part.model.batch_size
    flops, computed, recomputed = ({d: n * parts for d, n in c.items()} for c in counted[:3])
    return Work(
        flops=flops,
        computed_flops=computed,
        recomputed_flops=recomputed,
        sharing=_sharing(layout),
        rows=layout.model.batch_size,
        tokens=_tokens(layout),
        is_exact=counted[3],
    )


def dtype_of(eqn: Any) -> str:
    """The widest dtype of a product's operands."""
    dtypes = [atom.aval.dtype for atom in eqn.invars[:2]]
    return str(max(dtypes, key=lambda dtype: dtype.itemsize))


def products(
    jaxpr: Any, times: int = 1, by: Callable[[Any], str] = dtype_of
) -> tuple[Counter[str], bool]:
    """(dtype of the operands -> FLOPs of all products, whether that is exact) of a jaxpr.

    `by` tells of an equation under what else its FLOPs are counted.

    Of a conditional the branch with most work counts, of a loop that ends by a condition one turn.

    >>> import jax.numpy as jnp
    >>> products(jax.make_jaxpr(lambda x, w: x @ w)(jnp.ones((2, 3)), jnp.ones((3, 5))))
    (Counter({'float32': 60}), True)
    """
    found: Counter[str] = Counter()
    is_exact = True
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        rule = rule_of(eqn)
        if rule.flops:
            found[by(eqn)] += times * rule.flops(eqn)
        inner = [products(held, times * turns(eqn), by) for held in jaxprs_in_params(eqn.params)]
        if rule.kind == "cond":
            inner = [max(inner, key=lambda branch: branch[0].total())]
        for more, sure in inner:
            found += more
            # A loop without products is no matter, however often it turns.
            is_exact &= sure and not (rule.kind == "while" and more)
    return found, is_exact


def _counted(
    layout: Layout, traced: TracedLoss
) -> tuple[Counter[str], Counter[str], Counter[str], bool]:
    """(FLOPs, as they are computed, those of recomputation, whether exact) of a part's gradient.

    Remembered with the trace and how attention is computed: they depend on nothing else.
    """
    attention = attention_alike(layout)
    about = ("work", id(traced.closed), attention)
    remembered = layout.model.traced
    if about not in remembered:
        every, exact = products(_gradient(layout, traced, partial(_Once, Whole())))
        full = _gradient(layout, traced, partial(Filled, attention))
        once = every
        if any(eqn.primitive.name == FUSED for eqn, _ in equations(full)):
            once, _ = products(_gradient(layout, traced, partial(_Once, attention)))
        remembered[about] = (every, once, products(full)[0] - once, exact)
    return remembered[about]


def attention_alike(layout: Layout) -> Any:
    """How attention is computed on one device, with the same products."""
    attention = layout.attention.unmapped
    # Which is mapped to devices, and does the same work.
    return Whole() if isinstance(attention, Exchange) else attention


def gradients_of(layout: Layout, traced: TracedLoss) -> tuple[Any, Any]:
    """The jaxpr of the loss and its gradients: (nothing computed again, as it is computed)."""
    attention = attention_alike(layout)
    return (
        _gradient(layout, traced, partial(_Once, attention)),
        _gradient(layout, traced, partial(Filled, attention)),
    )


def _gradient(layout: Layout, traced: TracedLoss, make: Any) -> Any:
    """The jaxpr of the loss and its gradients on one device, by what interpreter `make` makes."""
    function = differentiated(filled_loss(layout, traced, make), 1)
    shapes = traced.arguments
    parameters = {path: shapes[path] for path in layout.parameters}
    state = {path: shapes[path] for path in layout.state}
    batch = {n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in layout.model.batch.items()}
    return jax.make_jaxpr(function)(parameters, state, batch, shapes.get(KEY))


class _Once(Filled):
    """Evaluates a loss whose rematerialization is left out, so that nothing is computed twice."""

    @staticmethod
    def through(block, stacked, x, *, dims, remat="none", unroll=1):
        """Layers in order, with everything kept for backward."""
        del remat
        return hooks.in_order(block, stacked, x, dims=dims, unroll=unroll)

    def remat(self, eqn, operands, here):
        """The results of what would be computed again, as those of a call."""
        return self.call(eqn, operands, here)


def _sharing(layout: Layout) -> int:
    """How many devices share the work: of each mesh axis that shards anything in use, all."""
    strategy, mesh = layout.strategy, layout.mesh
    specs = [*layout.batch.values(), *(a.used for a in layout.parameters.values())]
    sharding = {axis for spec in specs for entry in spec for axis in axes_of(entry)}
    sharding |= {axis for axes in strategy.between.values() for axis in axes}
    if runs_in_stages(strategy, mesh):
        sharding.add(STAGES)
    if strategy.averaging is not None:
        sharding.add(REPLICA)
    return prod(mesh.size(axis) for axis in sharding)


def _tokens(layout: Layout) -> int:
    """Positions of all rows: the most that a field of the batch has along sequences."""
    model = layout.model
    counts = [
        field.shape[0] * prod(size for size, role in zip(field.shape, roles, strict=True) if role)
        for field in model.batch.values()
        if any(roles := [role_of(model, dim) == "sequence" for dim in field.dims])
    ]
    return max(counts, default=0)
