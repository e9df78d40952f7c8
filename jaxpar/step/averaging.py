"""Copies of a network that train apart along a mesh axis, and the average that they go on from.

One copy's step is the plain step of the layout without that axis, on one share of the rows, and it
is done for every copy where that copy lies. What moves between them is in `average` alone.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.mesh import axes_of, entry_of
from jaxpar.jaxprs.equations import equations
from jaxpar.layout.record import Layout
from jaxpar.step.record import Step
from jaxpar.strategies.record import APART, Averaging

ByPath = dict[str, Any]


def averaged(layout: Layout, make: Callable[[Layout], Step]) -> Step:
    """The step of a layout whose strategy averages, from that of one copy.

    Args:
        layout: of the whole batch, its strategy's `averaging` set.
        make: the plain step of a layout, whatever its strategy says of averaging.

    Returns:
        A step whose parameters, model state, optimizer state, key, gradients and metrics have the
        copies as their leading dim, which lies over the axis `APART`; its `average` brings them
        together, and its `evaluate` is that of their average on the whole batch.
    """
    copy, whole = make(one_copy(layout)), make(layout)
    functions = {**_apart(layout, copy), **_together(layout, whole)}
    specs = copy.state_specs
    names = ("parameters", "model_state", "optimizer", "key")
    plain = averaging_of(layout).plain
    return replace(
        whole,
        **functions,
        state=jax.eval_shape(functions["init"], jax.eval_shape(lambda: jax.random.key(0))),
        state_specs=replace(
            specs,
            **{name: _over_copies(getattr(specs, name)) for name in names},
            outer={} if plain else {what: specs.parameters for what in ("anchor", "momentum")},
        ),
        gradient_specs=_over_copies(copy.gradient_specs),
        probe_specs=_over_copies(copy.probe_specs),
        asked=copy.asked,
        differentiated=copy.differentiated,
    )


def averaging_of(layout: Layout) -> Averaging:
    """How the replicas of a layout whose strategy averages do so."""
    assert layout.strategy.averaging is not None, layout.strategy.name
    return layout.strategy.averaging


def one_copy(layout: Layout) -> Layout:
    """The layout of one copy and its share of the rows: the same mesh, its axis `APART` unused."""
    strategy = layout.strategy
    compute, between = (
        {role: _without(axes_of(axes)) for role, axes in table.items()}
        for table in (strategy.compute, strategy.between)
    )
    rows = layout.model.batch_size // layout.mesh.size(APART)
    return replace(
        layout,
        model=layout.model.with_batch_size(rows),
        strategy=replace(strategy, averaging=None, compute=compute, between=between),
        batch={
            name: PartitionSpec(*(entry_of(_without(axes_of(entry))) for entry in spec))
            for name, spec in layout.batch.items()
        },
    )


def _without(axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis != APART)


def _over_copies(specs: Any) -> Any:
    return jax.tree.map(
        lambda spec: PartitionSpec(APART, *spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def _apart(layout: Layout, copy: Step) -> dict[str, Callable]:
    """What every copy does by itself: the functions of `copy`, done where each copy lies."""
    places, averaging = layout.mesh.size(APART), averaging_of(layout)

    each = partial(_for_each, layout) if _scatters(copy) else partial(_at_each, layout)

    def entering(state):
        return replace(state, step=jnp.broadcast_to(state.step, (places,)), outer={})

    def left(state, new):
        # All copies have done as many updates, so none is asked.
        return replace(new, step=state.step + 1, outer=state.outer)

    def init(key):
        first = copy.init(key)
        copies = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (places, *x.shape)),
            (first.parameters, first.model_state, first.optimizer),
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(first.key, jnp.arange(places))
        outer = {}
        if not averaging.plain:
            # Drawn once more: with two uses XLA was seen to round a draw otherwise than with one.
            outer = _at_rest(copy.init(jax.lax.optimization_barrier(key)).parameters)
        return type(first)(first.step, *copies, keys, outer)

    def probe(state, batch):
        new, metrics, found = each(lambda rows, own: copy.probe(own, rows))(batch, entering(state))
        return left(state, new), metrics, found

    def gradients(state, batch):
        return each(lambda rows, own: copy.gradients(own, rows))(batch, entering(state))

    def apply(state, gradients, model_state):
        new = each(lambda _, *own: copy.apply(*own))({}, entering(state), gradients, model_state)
        return left(state, new)

    return {
        "init": init,
        "probe": probe,
        "gradients": gradients,
        "apply": apply,
    }


def _at_each(layout: Layout, function: Callable) -> Callable:
    """`function(batch, *trees)` of one copy, for all: rows are shared out, trees stacked.

    Under a shard_map over the copies' axis alone, so that nothing can be said over it.
    """

    def here(batch, *stacked):
        own = jax.tree.map(lambda x: x[0], stacked)
        return jax.tree.map(lambda x: x[None], function(batch, *own))

    lead = PartitionSpec(APART)
    return jax.shard_map(
        here,
        mesh=layout.mesh.abstract,
        axis_names={APART},
        in_specs=lead,
        out_specs=lead,
        check_vma=False,  # a copy's step knows nothing of the axis along which it is repeated
    )


def _for_each(layout: Layout, function: Callable) -> Callable:
    """As `_at_each`, by vmap: every pin inside gets the copies' axis in front."""
    places, rows = layout.mesh.size(APART), one_copy(layout).batch

    def mapped(batch, *stacked):
        shared = {
            name: _pinned(
                layout, x.reshape(places, -1, *x.shape[1:]), PartitionSpec(APART, *rows[name])
            )
            for name, x in batch.items()
        }
        return jax.vmap(function, spmd_axis_name=APART, axis_size=places)(shared, *stacked)

    return mapped


def _scatters(copy: Step) -> bool:
    """Whether one copy's gradient adds by index, as an embedding's does, and convolves nothing.

    Under a shard_map over some axes XLA gathers the rows of such a sum over the other axes, where
    it would else add each device's own and all-reduce the table. Mapped convolutions become one
    with groups, for which it gathers the copies (openxla/xla#47945). Both with jaxlib 0.10.2.
    """
    if not copy.differentiated.is_partitioned:
        return False
    jaxpr = jax.make_jaxpr(copy.gradients)(copy.state, copy.batch)
    found = {eqn.primitive.name for eqn, _ in equations(jaxpr)}
    return "scatter-add" in found and "conv_general_dilated" not in found


def _together(layout: Layout, whole: Step) -> dict[str, Callable]:
    """What is done with all copies at once: averaging, and evaluating their average."""
    places, averaging = layout.mesh.size(APART), averaging_of(layout)
    stored = {path: a.stored for path, a in (*layout.parameters.items(), *layout.state.items())}

    def mean(values: ByPath) -> ByPath:
        return {p: _pinned(layout, jnp.mean(v, axis=0), stored[p]) for p, v in values.items()}

    def spread(values: ByPath) -> ByPath:
        return {
            path: _pinned(
                layout,
                jnp.broadcast_to(value, (places, *value.shape)),
                PartitionSpec(APART, *stored[path]),
            )
            for path, value in values.items()
        }

    def average(state):
        parameters, outer = mean(state.parameters), state.outer
        if not averaging.plain:
            parameters, outer = outer_step(averaging, outer, parameters)
        return replace(
            state,
            parameters=spread(parameters),
            model_state=state.model_state | spread(mean(_statistics(state.model_state))),
            outer=outer,
        )

    def evaluate(state, batch):
        first = {path: value[0] for path, value in state.model_state.items()}
        met = replace(
            state,
            parameters=mean(state.parameters),
            model_state=first | mean(_statistics(state.model_state)),
        )
        return whole.evaluate(met, batch)

    return {"average": average, "evaluate": evaluate}


def outer_step(averaging: Averaging, outer: ByPath, means: ByPath) -> tuple[ByPath, ByPath]:
    """One step of SGD with Nesterov momentum from the anchor, the way to `means` its descent.

    Args:
        averaging: its rate and momentum.
        outer: `anchor`, the parameters where copies last met, and `momentum`; each path -> array.
        means: the copies' mean parameters, path -> array.

    Returns:
        The parameters that every copy goes on from, and the new `outer`.
    """
    momentum = {
        path: averaging.outer_momentum * outer["momentum"][path] + outer["anchor"][path] - mean
        for path, mean in means.items()
    }
    met = {}
    for path, mean in means.items():
        anchor = outer["anchor"][path]
        ahead = averaging.outer_momentum * momentum[path] + anchor - mean
        met[path] = anchor - averaging.outer_rate * ahead
    return met, {"anchor": met, "momentum": momentum}


def _at_rest(parameters: ByPath) -> ByPath:
    return {"anchor": parameters, "momentum": jax.tree.map(jnp.zeros_like, parameters)}


def _statistics(model_state: ByPath) -> ByPath:
    """The state that has a mean; counts and random keys stay each copy's own."""
    return {p: v for p, v in model_state.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def _pinned(layout: Layout, x: jax.Array, spec: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh.abstract, spec))
