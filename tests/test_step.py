"""make_step: accumulation, metrics, optimizer state sharded like its parameters, evaluation."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P
from small import small_layout

from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.inference.probe import probe_batch
from jaxpar.program.quick import QUICK
from jaxpar.step.make_step import make_step

ALONE = "data=1"
# Float32 sums in another order; 6e-7 was the largest seen.
ROUNDING = 1e-5


def state_and_batch(step, seed=0):
    return step.init(jax.random.key(seed)), probe_batch(step.layout.model, seed)


def relative(a, b):
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_accumulated_gradients_equal_the_whole_batchs_when_weights_are_uneven(microbatches):
    """Sums are accumulated and divided once: a mean of means would be off by 1e-1."""
    layout = small_layout("mlp", "single", ALONE)
    whole, cut = make_step(layout), make_step(layout, microbatches=microbatches)
    state, batch = state_and_batch(whole)
    assert np.std(batch["weight"]) > 0.1
    right, _, right_metrics = jax.jit(whole.gradients)(state, batch)
    got, _, metrics = jax.jit(cut.gradients)(state, batch)
    for path in right:
        assert relative(got[path], right[path]) < ROUNDING, path
    for name in right_metrics:
        assert abs(metrics[name] - right_metrics[name]) < ROUNDING, name


def test_a_gradient_is_that_of_the_weighted_mean():
    """Against jax.grad of the mean itself, written here: sum of w x loss over sum of w."""
    layout = small_layout("mlp", "single", ALONE)
    step = make_step(layout)
    state, batch = state_and_batch(step)

    def mean(parameters):
        x = batch["image"].reshape(len(batch["image"]), -1)
        count = len([p for p in parameters if p.endswith("kernel")])
        for i in range(count):
            x = x @ parameters[f"layers/{i}/kernel"] + parameters[f"layers/{i}/bias"][None]
            x = jax.nn.relu(x) if i + 1 < count else x
        losses = optax.softmax_cross_entropy_with_integer_labels(x, batch["label"])
        return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])

    loss, right = jax.value_and_grad(mean)(state.parameters)
    got, _, metrics = step.gradients(state, batch)
    assert abs(metrics["loss"] - loss) < ROUNDING
    for path in right:
        assert relative(got[path], right[path]) < ROUNDING, path


def test_padding_does_not_count():
    """Rows of weight 0 change neither loss nor gradient, whatever they hold."""
    step = make_step(small_layout("mlp", "single", ALONE))
    state, batch = state_and_batch(step)
    batch["weight"][3:] = 0
    other = {**batch, "image": batch["image"].copy()}
    other["image"][3:] = 100.0
    (a, _, m), (b, _, n) = step.gradients(state, batch), step.gradients(state, other)
    assert m["loss"] == n["loss"]
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


def test_an_update_is_gradients_then_apply():
    """The whole step is its two halves, and counts itself."""
    step = make_step(small_layout("convnet", "single", ALONE))
    state, batch = state_and_batch(step)
    quickly = partial(jax.jit, compiler_options=QUICK)
    whole, metrics = quickly(step.update)(state, batch)
    gradients, model_state, _ = quickly(step.gradients)(state, batch)
    halves = quickly(step.apply)(state, gradients, model_state, metrics["loss"])
    assert int(whole.step) == int(halves.step) == 1
    for path, value in whole.parameters.items():
        assert relative(value, halves.parameters[path]) < ROUNDING
        assert not np.array_equal(value, state.parameters[path]), path
    assert any(not np.array_equal(whole.model_state[p], v) for p, v in state.model_state.items())
    assert set(metrics) >= {"loss", "accuracy"}


def test_dropout_masks_depend_on_the_step_and_the_key_alone():
    """The same state gives the same masks, the next step others; evaluation drops nothing."""
    step = make_step(small_layout("mlp", "single", ALONE, dropout=0.5))
    state, batch = state_and_batch(step)
    losses = [float(step.gradients(state, batch)[2]["loss"]) for _ in range(2)]
    later = float(step.gradients(replace(state, step=state.step + 1), batch)[2]["loss"])
    assert losses[0] == losses[1] != later
    means = [step.evaluate(s, batch)["loss"].value for s in (state, replace(state, step=7))]
    assert float(means[0]) == float(means[1]) != losses[0]


def test_evaluation_leaves_statistics_alone_and_uses_them():
    """BatchNorm in evaluation reads its running statistics: others give another loss."""
    step = make_step(small_layout("convnet", "single", ALONE))
    state, batch = state_and_batch(step)
    moved = {p: v + 1.0 for p, v in state.model_state.items()}
    before, after = (
        float(step.evaluate(s, batch)["loss"].value)
        for s in (state, replace(state, model_state=moved))
    )
    assert before != after


def _kernels(parameters: Any) -> Any:
    return traverse_util.path_aware_map(lambda path, _: path[-1] == "kernel", parameters)


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "masked": optax.adamw(1e-3, mask=_kernels),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_is_sharded_like_its_parameters(name):
    """Optimizer state of a parameter's shape has the parameter's spec; other is replicated."""
    layout = small_layout("mlp", "fsdp+tensor", "data=4,model=2")
    step = make_step(layout, optimizer=OPTIMIZERS[name])
    stored = {path: array.stored for path, array in layout.parameters.items()}
    specs = jax.tree_util.tree_leaves_with_path(
        step.state_specs.optimizer, is_leaf=lambda x: isinstance(x, P)
    )
    shapes = jax.tree.leaves(step.state.optimizer)
    followed = 0
    for (path, spec), leaf in zip(specs, shapes, strict=True):
        own = "/".join(str(p.key) for p in path if isinstance(p, jax.tree_util.DictKey))
        assert spec == (stored[own] if own else P()), path
        assert not own or leaf.shape == layout.parameters[own].shape
        followed += bool(own)
    assert followed in (len(stored), 2 * len(stored))


OTHER_SHAPES = {
    "factored": (optax.adafactor(1e-3, min_dim_size_to_factor=8), {"v_row", "v_col"}, P("model")),
    "history": (
        optax.lbfgs(1e-2, memory_size=4, linesearch=None),
        {"diff_params_memory", "diff_updates_memory"},
        P(None, "model", "data"),
    ),
}


@pytest.mark.parametrize("name", OTHER_SHAPES)
def test_optimizer_state_of_another_shape_is_sharded_along_the_dims_it_keeps(name):
    """Adafactor's rows and columns, and the last four updates that L-BFGS remembers."""
    optimizer, names, spec = OTHER_SHAPES[name]
    layout = small_layout("mlp", "fsdp+tensor", "data=4,model=2")
    assert layout.parameters["layers/1/kernel"].stored == P("model", "data")
    step = make_step(layout, optimizer=optimizer)
    specs = jax.tree_util.tree_leaves_with_path(
        step.state_specs.optimizer, is_leaf=lambda x: isinstance(x, P)
    )
    found = {jax.tree_util.keystr(path, simple=True, separator="/"): s for path, s in specs}
    for kept in names:
        assert found[f"0/{kept}/layers/1/kernel"] == spec


@pytest.mark.parametrize(
    ("model", "strategy", "mesh"),
    [
        ("convnet", "hybrid", "data=4,model=2"),
        ("mlp", "diloco", "replica=2,data=2"),
        ("mlp", "local_sgd", "replica=2,data=2"),
        ("transformer", "pipeline", "pipe=2,data=2"),
    ],
)
def test_the_abstract_state_is_that_which_init_makes(model, strategy, mesh):
    """Shapes and dtypes that are known without building the module are those that it draws."""
    step = make_step(small_layout(model, strategy, mesh))
    made = jax.eval_shape(step.init, jax.random.key(0))
    want = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), step.state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), made) == want


def test_an_optimizer_that_was_right_of_one_model_is_asked_of_another():
    """What is remembered of an optimizer is for its parameters alone."""

    def update(updates, state, params=None):
        wide = max(leaf.size for leaf in jax.tree.leaves(params)) > 10_000
        return updates, state[:1] if wide else state

    optimizer = optax.GradientTransformation(lambda params: jax.numpy.zeros(2), update)
    for _ in range(2):
        make_step(small_layout("mlp", "data", ALONE), optimizer=optimizer)
        with pytest.raises(RequestError, match="other shapes after an update"):
            make_step(small_layout("mlp", "data", ALONE, width=128), optimizer=optimizer)


def test_a_step_that_makes_no_sense_is_refused():
    """An unknown mode, no microbatch, and microbatches that do not divide the batch."""
    layout = small_layout("mlp", "data", "data=4")
    with pytest.raises(RequestError, match="unknown mode 'atuo': did you mean 'auto'"):
        make_step(layout, mode="atuo")
    with pytest.raises(RequestError, match="microbatches=0"):
        make_step(layout, microbatches=0)
    with pytest.raises(
        LayoutError, match="batch of 16 rows.*3 microbatches.*use a batch of 12 or 24"
    ):
        make_step(layout, microbatches=3)
