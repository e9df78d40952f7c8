"""ZeRO and replicas across nodes broken on purpose: verify catches each, and names the mistake."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from small import cpu, small_layout
from test_mutants import assert_says, found_wrong, one_share, over_all, own, times, with_gradients

from jaxpar.core.mesh import axes_of
from jaxpar.program.devices import device_mesh
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

WAYS = 4
COPIES = f"replica=2,data={WAYS}"


def own_piece_alone(layout, old, new):
    """One device's weights: new where its own optimizer state is, and elsewhere as they were."""
    kept = {}
    for path, array in layout.parameters.items():
        kept[path] = new[path]
        for dim, entry in enumerate(array.optimizer_state):
            if "data" in axes_of(entry):
                owner = jnp.arange(array.shape[dim]) // (array.shape[dim] // WAYS)
                mine = owner == jax.lax.axis_index("data")
                mine = mine.reshape([-1 if d == dim else 1 for d in range(len(array.shape))])
                kept[path] = jnp.where(mine, new[path], old[path])
    return kept


def test_zero1_that_does_not_gather_the_new_weights_is_caught():
    """Each device updates its shard, and the shards of the others are those of the step before."""

    def make(layout):
        step = make_step(layout)
        stale = jax.shard_map(
            partial(own_piece_alone, layout),
            mesh=device_mesh(layout.mesh, cpu()),
            in_specs=(P(), P()),
            out_specs=P(),
            check_vma=False,  # else JAX itself would see that they differ
        )

        def apply(state, gradients, model_state, loss):
            new = step.apply(state, gradients, model_state, loss)
            return replace(new, parameters=stale(state.parameters, new.parameters))

        return with_gradients(replace(step, apply=apply), step.gradients)

    verdict = found_wrong(small_layout("mlp", "zero1", f"data={WAYS}"), make)
    assert verdict.decisive.name == "update"
    assert not verdict.decisive.replicas_agree
    assert_says(verdict, "each updated its own shard and the new shards were not gathered")


def one_replica_alone(alone, state, batch):
    """Gradients summed inside a replica, and not over replicas; the metrics are right."""
    gradients, new, metrics, weight = own(alone, state, batch)
    everywhere = over_all(metrics, weight, ("replica", "data"))
    return over_all(gradients, weight), new, everywhere


def own_share_of_all(alone, state, batch):
    """The same, but divided by the weight of the whole batch: half a gradient in each replica."""
    gradients, new, metrics, weight = own(alone, state, batch)
    both = ("replica", "data")
    mine = times(gradients, weight / jax.lax.psum(weight, both))
    return jax.lax.psum(mine, "data"), new, over_all(metrics, weight, both)


def by_replicas(local):
    """A `make` whose gradients each device takes of its own rows by `local`."""

    def make(layout):
        alone = one_share(layout, layout.mesh.size("replica") * layout.mesh.size("data"))
        gradients = jax.shard_map(
            partial(local, alone),
            mesh=device_mesh(layout.mesh, cpu()),
            in_specs=(P(), P(("replica", "data"))),
            out_specs=P(),
            check_vma=False,
        )
        return with_gradients(make_step(layout), gradients)

    return make


def test_replicas_that_do_not_sum_over_replica_are_caught():
    """The all-reduce over replica left out: each replica trains on its own half of the batch."""
    layout = small_layout("mlp", "replica+data", COPIES)
    verdict = found_wrong(layout, by_replicas(one_replica_alone))
    assert verdict.decisive.name == "gradient"
    assert_says(
        verdict, "gradients of one device along 'replica' alone: the sum over all 2 was left out"
    )
    verdict = found_wrong(layout, by_replicas(own_share_of_all))
    assert not verdict.decisive.replicas_agree
    assert_says(verdict, "devices that should hold the same values do not")


def test_a_loss_scale_that_is_not_taken_back_is_caught():
    """Every gradient is the scale too large."""

    def make(layout):
        step = make_step(layout, loss_scale=1024)

        def gradients(state, batch):
            means, new, metrics = step.gradients(state, batch)
            return times(means, 1024), new, metrics

        return with_gradients(step, gradients)

    verdict = found_wrong(small_layout("mlp", "zero1", f"data={WAYS}"), make)
    assert_says(verdict, "every gradient is 1024 times what it should be")
