"""Replicas of local SGD along a mesh axis, and the average that they go on from.

One replica's step is the plain step of the layout without that axis, on one share of the rows; each
replica does it on its own devices. All communication between replicas is in `average`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpar.layout.record import Layout
from jaxpar.step.constraints import constrained
from jaxpar.step.record import State, Step
from jaxpar.step.shares import for_each_share, one_share, scatters
from jaxpar.strategies.record import REPLICA, Averaging

ByPath = dict[str, Any]


def averaged(layout: Layout, make: Callable[[Layout], Step]) -> Step:
    """The step of a layout whose strategy averages, from that of one replica.

    Args:
        layout: of the whole batch, its strategy's `averaging` set.
        make: the plain step of a layout, whatever its strategy says of averaging.

    Returns:
        A step whose parameters, model state, optimizer state, key, gradients and metrics have the
        replicas as their leading dim, sharded over the axis `REPLICA`; its `average` synchronises
        them, and its `evaluate` is that of their average on the whole batch.
    """
    replica, whole = make(one_share(layout, (REPLICA,))), make(layout)
    functions = {**_per_replica(layout, replica), **_across_replicas(layout, whole)}
    specs = replica.state_specs
    names = ("parameters", "model_state", "optimizer", "key")
    plain = averaging_of(layout).plain
    return replace(
        whole,
        **functions,
        state=jax.eval_shape(partial(_spread_out, layout), replica.state, replica.state.parameters),
        state_specs=replace(
            specs,
            **{name: _over_replicas(getattr(specs, name)) for name in names},
            outer={} if plain else {what: specs.parameters for what in ("anchor", "momentum")},
        ),
        gradient_specs=_over_replicas(replica.gradient_specs),
        probe_specs=_over_replicas(replica.probe_specs),
        asked=replica.asked,
        differentiated=replica.differentiated,
    )


def averaging_of(layout: Layout) -> Averaging:
    """How the replicas of a layout whose strategy averages do so."""
    assert layout.strategy.averaging is not None, layout.strategy.name
    return layout.strategy.averaging


def _over_replicas(specs: Any) -> Any:
    """A tree of PartitionSpecs for the same arrays stacked, a replica each, over `REPLICA`."""
    return jax.tree.map(
        lambda spec: PartitionSpec(REPLICA, *spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )


def _per_replica(layout: Layout, replica: Step) -> dict[str, Callable]:
    """Step functions of all replicas without communication between them, from those of one."""
    places = layout.mesh.size(REPLICA)
    by_vmap = replica.differentiated.is_partitioned and scatters(replica.asked.loss)

    def each(function):
        def here(rows, _, *own):
            if not by_vmap:
                own = [_as_stored(layout, x) if isinstance(x, State) else x for x in own]
            return function(rows, *own)

        mapped = for_each_share(layout, (REPLICA,), here, by_vmap=by_vmap)
        return lambda batch, *own: mapped(batch, {}, *own)

    def entering(state):
        return replace(state, step=jnp.broadcast_to(state.step, (places,)), outer={})

    def left(state, new):
        # All replicas have done as many updates, so none is asked.
        return replace(new, step=state.step + 1, outer=state.outer)

    def init(key):
        first, anchor = replica.init(key), {}
        if not averaging_of(layout).plain:
            # Drawn once more: with two uses XLA was seen to round a draw otherwise than with one.
            anchor = replica.init(jax.lax.optimization_barrier(key)).parameters
        return _spread_out(layout, first, anchor)

    def probe(state, batch):
        new, metrics, found = each(lambda rows, own: replica.probe(own, rows))(
            batch, entering(state)
        )
        return left(state, new), metrics, found

    def gradients(state, batch):
        return each(lambda rows, own: replica.gradients(own, rows))(batch, entering(state))

    def apply(state, gradients, model_state, loss):
        own = (entering(state), gradients, model_state, loss)
        return left(state, each(lambda _, *own: replica.apply(*own))({}, *own))

    return {
        "init": init,
        "probe": probe,
        "gradients": gradients,
        "apply": apply,
    }


def _spread_out(layout: Layout, first: State, anchor: ByPath) -> State:
    """The first state of all replicas, from that of one.

    Args:
        layout: of the whole batch.
        first: one replica's state, of which only the key will differ.
        anchor: its parameters, for an averaging that has an outer step.
    """
    places = layout.mesh.size(REPLICA)
    parameters, model_state, optimizer = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (places, *x.shape)),
        (first.parameters, first.model_state, first.optimizer),
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(first.key, jnp.arange(places))
    outer = {} if averaging_of(layout).plain else _at_rest(anchor)
    return State(first.step, parameters, model_state, optimizer, keys, outer)


def _as_stored(layout: Layout, state: State) -> State:
    """One replica's state, its parameters constrained to be sharded as they are stored.

    Under a shard_map over some axes XLA knows no sharding over the others. It was seen to shard
    weights as their optimizer state is (ZeRO), and therefore to gather the rows of a batch.
    """
    specs = {path: array.stored for path, array in layout.parameters.items()}
    values = {p: constrained(layout, x, specs[p]) for p, x in state.parameters.items()}
    return replace(state, parameters=values)


def _across_replicas(layout: Layout, whole: Step) -> dict[str, Callable]:
    """`average`, which synchronises replicas, and `evaluate` of their average on a whole batch."""
    places, averaging = layout.mesh.size(REPLICA), averaging_of(layout)
    stored = {path: a.stored for path, a in (*layout.parameters.items(), *layout.state.items())}

    def mean(values: ByPath) -> ByPath:
        return {p: constrained(layout, jnp.mean(v, axis=0), stored[p]) for p, v in values.items()}

    def spread(values: ByPath) -> ByPath:
        return {
            path: constrained(
                layout,
                jnp.broadcast_to(value, (places, *value.shape)),
                PartitionSpec(REPLICA, *stored[path]),
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
        averaged_state = replace(
            state,
            parameters=mean(state.parameters),
            model_state=first | mean(_statistics(state.model_state)),
        )
        return whole.evaluate(averaged_state, batch)

    return {"average": average, "evaluate": evaluate}


def outer_step(averaging: Averaging, outer: ByPath, means: ByPath) -> tuple[ByPath, ByPath]:
    """One step of SGD with Nesterov momentum from the anchor, the way to `means` its descent.

    Args:
        averaging: its rate and momentum.
        outer: `anchor`, the parameters at the last synchronisation, and `momentum`; each path ->
            array.
        means: the replicas' mean parameters, path -> array.

    Returns:
        The parameters that every replica goes on from, and the new `outer`.
    """
    momentum = {
        path: averaging.outer_momentum * outer["momentum"][path] + outer["anchor"][path] - mean
        for path, mean in means.items()
    }
    after = {}
    for path, mean in means.items():
        anchor = outer["anchor"][path]
        ahead = averaging.outer_momentum * momentum[path] + anchor - mean
        after[path] = anchor - averaging.outer_rate * ahead
    return after, {"anchor": after, "momentum": momentum}


def _at_rest(parameters: ByPath) -> ByPath:
    """The outer state at the start: these parameters as the anchor, and no momentum."""
    return {"anchor": parameters, "momentum": jax.tree.map(jnp.zeros_like, parameters)}


def _statistics(model_state: ByPath) -> ByPath:
    """The floats of a model's state, which are averaged; counts and random keys are not."""
    return {p: v for p, v in model_state.items() if jnp.issubdtype(v.dtype, jnp.floating)}
