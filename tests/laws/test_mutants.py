"""Steps broken on purpose: verify or the traffic law catches each, and names the mistake.

Only `make` is wrapped; the one-device reference inside verify stays right.
"""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from small import cpu, small_layout, small_strategy

from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.inspect import inspect
from jaxpar.measures.verify.compare import rounding_only
from jaxpar.measures.verify.verdict import BOUNDS, ROUNDING
from jaxpar.measures.verify.verify import verify
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from jaxpar.strategies.record import ALL_GATHER, REDUCE_SCATTER, Strategy

pytestmark = pytest.mark.usefixtures("drawn_once")

BOTH = "data=4,model=2"


def one_share(layout, shares):
    """The step of one device and its share of the rows, and no other."""
    model = layout.model.with_batch_size(layout.model.batch_size // shares)
    return make_step(lay_out(model, strategy=Strategy(name="one device"), mesh=MeshShape()))


def with_gradients(step, gradients):
    """`step` with other gradients, in its whole update too."""

    def probe(state, batch):
        means, model_state, metrics = gradients(state, batch)
        return step.apply(state, means, model_state, metrics["loss"]), metrics, means

    return replace(step, gradients=gradients, probe=probe)


def by_shards(local):
    """A `make` whose gradients each device along data takes of its own rows by `local`."""

    def make(layout):
        alone = one_share(layout, layout.mesh.size("data"))
        gradients = jax.shard_map(
            partial(local, alone),
            mesh=device_mesh(layout.mesh, cpu()),
            in_specs=(P(), P("data")),
            out_specs=P(),
            check_vma=False,  # else JAX itself would put the sum back
        )
        return with_gradients(make_step(layout), gradients)

    return make


def own(alone, state, batch):
    """One shard's means, and the weight that they were divided by."""
    gradients, new, metrics = alone.gradients(state, batch)
    return gradients, new, metrics, jnp.sum(batch["weight"])


def times(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


def over_all(mean, weight, axis: str | tuple[str, ...] = "data"):
    """The right way: sum what each shard has, then divide by the weight of all."""
    return times(jax.lax.psum(times(mean, weight), axis), 1 / jax.lax.psum(weight, axis))


def honest(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    return over_all(gradients, weight), new, over_all(metrics, weight)


def dropped_sum(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    return gradients, new, over_all(metrics, weight)


def replicas_differ(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    mine = times(gradients, weight / jax.lax.psum(weight, "data"))
    return mine, new, over_all(metrics, weight)


def sum_for_a_mean(alone, state, batch):
    gradients, new, metrics = honest(alone, state, batch)
    return jax.lax.psum(gradients, "data"), new, metrics


def mean_of_means(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    return jax.lax.pmean(gradients, "data"), new, over_all(metrics, weight)


def sum_of_means(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    return jax.lax.psum(gradients, "data"), new, over_all(metrics, weight)


def swapped_axes(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    return over_all(gradients, weight, "model"), new, over_all(metrics, weight)


def wrong_count(alone, state, batch):
    gradients, new, metrics, weight = own(alone, state, batch)
    rows = 4 * batch["weight"].size
    return (
        times(jax.lax.psum(times(gradients, weight), "data"), 1 / rows),
        new,
        over_all(metrics, weight),
    )


def key_a_device(alone, state, batch):
    mine = replace(state, key=jax.random.fold_in(state.key, jax.lax.axis_index("data")))
    return honest(alone, mine, batch)


def found_wrong(layout, make):
    """The verdict on a step that is wrong; it has to be found."""
    verdict = verify(layout, hardware=cpu(), make=make)
    assert not verdict.ok, "the mistake was not caught"
    assert not verdict.decisive.ok
    assert verdict.likely_mistake
    return verdict


def test_a_right_step_written_by_shards_passes():
    """The control: it is the mistake that is caught below, not the way the steps are written."""
    verdict = verify(small_layout("mlp", "data", BOTH), hardware=cpu(), make=by_shards(honest))
    assert verdict.ok, verdict.decisive
    assert verdict.likely_mistake is None


GRADIENT_MISTAKES = [
    (dropped_sum, "gradients of one device along 'data' alone: the sum over all 4 was left out"),
    (replicas_differ, "devices that should hold the same values do not.*kept its own share"),
    (sum_for_a_mean, "every gradient is 4 times too large.*the 4 devices along 'data'"),
    (mean_of_means, "a mean of means: each device along 'data' divided by its own weight"),
    (sum_of_means, "the sum of the means of every device along 'data'"),
    (swapped_axes, "gradients of one device along 'data' alone: the sum over all 4 was left out"),
    (wrong_count, "the loss is divided by a wrong count"),
]


@pytest.mark.parametrize(
    ("mistake", "sentence"), GRADIENT_MISTAKES, ids=lambda x: getattr(x, "__name__", None)
)
def test_a_wrong_gradient_is_caught_and_its_mistake_named(mistake, sentence):
    """Mistakes in the sum over data: the loss is right, one gradient a step tells them apart."""
    verdict = found_wrong(small_layout("mlp", "data", BOTH), by_shards(mistake))
    assert verdict.decisive.name == "gradient"
    assert verdict.decisive.error > 1e-3  # the smallest is ten decades above rounding
    assert_says(verdict, sentence)


def assert_says(verdict, sentence):
    assert re.search(sentence, verdict.likely_mistake), verdict.likely_mistake


def test_replicas_that_differ_are_seen_through_the_global_view():
    """Each device's own shard is compared: the view of the whole array shows device 0's alone."""
    verdict = found_wrong(small_layout("mlp", "data", "data=8"), by_shards(replicas_differ))
    gradient = next(check for check in verdict.checks if check.name == "gradient")
    assert not gradient.replicas_agree


def test_a_dropout_key_a_device_is_caught():
    """Masks drawn a device at a time are other masks: the loss differs, and that is said."""
    verdict = found_wrong(small_layout("mlp", "data", BOTH, dropout=0.1), by_shards(key_a_device))
    assert_says(verdict, "dropout masks drawn a device at a time")


def test_a_mean_of_microbatch_means_is_caught():
    """Microbatches of uneven weight, each divided by its own."""

    def make(layout):
        step = make_step(layout, microbatches=2)
        whole = make_step(layout.with_rows(layout.model.batch_size // 2))

        def gradients(state, batch):
            halves = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
            (a, _, _), (b, new, _) = (whole.gradients(state, half) for half in halves)
            metrics = step.gradients(state, batch)[2]
            return jax.tree.map(lambda x, y: (x + y) / 2, a, b), new, metrics

        return with_gradients(step, gradients)

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert_says(verdict, "a mean of means: each microbatch divided by its own weight")


def scaled(path, change):
    """A `make` that changes the gradient of one array."""

    def make(layout):
        step = make_step(layout)

        def gradients(state, batch):
            means, new, metrics = step.gradients(state, batch)
            return {**means, path: change(means[path])}, new, metrics

        return with_gradients(step, gradients)

    return make


def test_a_norms_doubled_gradient_is_caught():
    """Summed over model, over which it is replicated: it hides from any loss curve."""
    path = "blocks/attention_norm/scale"
    layout = small_layout("transformer", "hybrid", BOTH)
    verdict = found_wrong(layout, scaled(path, lambda g: 2 * g))
    assert verdict.decisive.worst == path
    assert_says(verdict, f"{path} alone is 2 times what it should be.*already held the whole")


def test_an_array_whose_gradient_is_rounding_is_told_from_one_that_is_small():
    """What a softmax cancels is judged by its gradient; Adam would make steps of its rounding."""
    gradients = {"bias": 1e-16 * np.ones(4), "small": 1e-9 * np.ones(4), "kernel": np.ones(4)}
    assert rounding_only(gradients, ROUNDING * BOUNDS["float64"]["gradient"]) == {"bias"}


def test_an_array_with_its_dims_swapped_is_caught_by_name():
    """A square matrix turned over has the right shape, the right norm and the wrong values."""
    path = "layers/1/kernel"
    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), scaled(path, jnp.transpose))
    assert verdict.decisive.worst == path
    assert_says(verdict, "the loss is right and the gradient is not")


def test_forgotten_weight_decay_is_caught_at_the_update():
    """The gradient is right, and under Adam the update is wrong by the decay alone."""

    def make(layout):
        step = make_step(layout, optimizer=optax.adamw(1e-3, weight_decay=0.01))
        bare = make_step(layout, optimizer=optax.adamw(1e-3, weight_decay=0.0))
        return with_gradients(replace(step, apply=bare.apply), step.gradients)

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert verdict.decisive.name == "update"
    assert_says(verdict, "the gradient is right and the update from it is not.*weight decay")


def test_clipping_by_the_norm_of_a_devices_own_share_is_caught():
    """The norm to clip by is that of the whole gradient, over all devices."""

    def make(layout):
        clip = optax.clip_by_global_norm(1e-3)
        step = make_step(layout, optimizer=optax.chain(clip, optax.sgd(0.1)))
        plain = make_step(layout, optimizer=optax.chain(optax.identity(), optax.sgd(0.1)))
        stored = {path: array.stored for path, array in layout.parameters.items()}

        def apply(state, gradients, model_state, loss):
            clipped = jax.shard_map(
                lambda own: clip.update(own, optax.EmptyState())[0],
                mesh=device_mesh(layout.mesh, cpu()),
                in_specs=(stored,),
                out_specs=stored,
                check_vma=False,
            )(gradients)
            return plain.apply(state, clipped, model_state, loss)

        return with_gradients(replace(step, apply=apply), step.gradients)

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert verdict.decisive.name == "update"
    assert_says(verdict, "clipping by the norm of one device's share")


@pytest.mark.draws_sharded
def test_parameters_drawn_differently_are_caught():
    """A layout that folds its own number into the key trains another model."""

    def make(layout):
        step = make_step(layout)
        return replace(step, init=lambda key: step.init(jax.random.fold_in(key, 1)))

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert verdict.decisive.name == "initial state"
    assert_says(verdict, "parameters are drawn differently")


def test_a_loss_that_is_wrong_alone_is_caught():
    """The gradient is right, and what is told about it is not."""

    def make(layout):
        step = make_step(layout)

        def gradients(state, batch):
            means, new, metrics = step.gradients(state, batch)
            return means, new, {**metrics, "loss": metrics["loss"] * 4}

        return with_gradients(step, gradients)

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert verdict.decisive.name == "loss"
    assert_says(verdict, "the gradient is right and the loss is not")


def test_moments_that_are_not_carried_are_caught_after_several_steps():
    """One step is right and those after it are not: they leave the optimizer state as it was."""

    def make(layout):
        step = make_step(layout)

        def probe(state, batch):
            new, *more = step.probe(state, batch)
            stale = jax.tree.map(
                lambda old, now: jnp.where(state.step > 0, old, now), state.optimizer, new.optimizer
            )
            return replace(new, optimizer=stale), *more

        return replace(step, probe=probe)

    verdict = found_wrong(small_layout("mlp", "hybrid", BOTH), make)
    assert verdict.decisive.name.endswith("over 3 steps") or "after 3" in verdict.decisive.name
    assert_says(verdict, "one step is right and several are not")


def test_statistics_that_are_not_carried_are_caught():
    """BatchNorm's running mean is part of the state that a step carries."""

    def make(layout):
        step = make_step(layout)

        def probe(state, batch):
            new, *more = step.probe(state, batch)
            return replace(new, model_state=state.model_state), *more

        return replace(step, probe=probe)

    verdict = found_wrong(small_layout("convnet", "hybrid", BOTH), make)
    assert verdict.decisive.name == "model state"


def faults_of(strategy):
    layout = lay_out(
        small_layout("mlp", "fsdp", BOTH).model, strategy=strategy, mesh=MeshShape.parse(BOTH)
    )
    return inspect(compile_step(make_step(layout), hardware=cpu(), for_speed=False)).faults


def test_a_strategy_that_denies_its_all_gathers_is_caught():
    """Fully sharded data parallelism that claims never to gather: the program is the witness."""
    honest_one = small_strategy("fsdp")
    denies = replace(honest_one, must={}, never={"data": frozenset({ALL_GATHER})})
    assert faults_of(honest_one) == ()
    (fault,) = faults_of(denies)
    assert re.match(
        "unexpected collective: .* never causes all-gather of weights over axis 'data', and", fault
    )


def test_a_strategy_that_promises_what_it_does_not_do_is_caught():
    """A must that no collective of the program keeps."""
    promises = replace(small_strategy("tensor"), must={"model": frozenset({REDUCE_SCATTER})})
    (fault,) = faults_of(promises)
    assert re.match(
        "missing collective: .* must cause reduce-scatter over axis 'model', and", fault
    )
