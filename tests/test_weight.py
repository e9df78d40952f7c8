"""What a person's mean is a mean over, and losses that are none: see `inference.weight`."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxpr_as_fun
from small import cpu

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.inference.traced import traced_loss
from jaxpar.program.in_parts import InParts, in_parts
from jaxpar.program.quick import QUICK

pytestmark = pytest.mark.usefixtures("drawn_once")

ROWS = 8


class Net(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Normed(Net):
    """With statistics of the batch between them."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.norm(self.up(x))))


class Dropped(Net):
    """With dropout between them."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.down(self.dropout(nnx.relu(self.up(x))))


def batch(rows=ROWS):
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((rows, 4)).astype("float32"),
        "y": rng.standard_normal((rows, 4)).astype("float32"),
        "mask": np.array([1, 1, 1, 0, 1, 0, 0, 0], "float32"),
        "kept": np.array([1, 1, 0, 1, 0, 0, 0, 1], bool),
        "count": np.array([1, 5, 2, 2, 1, 3, 4, 9], "int32"),
    }


def each(net, b):
    return ((net(b["x"]) - b["y"]) ** 2).sum(-1)


def kept(net, b):
    return (each(net, b) * b["mask"]).sum()


WEIGHTS = {
    "rows": (Net, lambda n, b: each(n, b).mean(), 8),
    "loop": (
        Net,
        lambda n, b: (
            jax.lax.scan(
                lambda c, xy: (c + ((n(xy[0]) - xy[1]) ** 2).sum(), None), 0.0, (b["x"], b["y"])
            )[0]
            / len(b["x"])
        ),
        8,
    ),
    "dropout": (Dropped, lambda n, b: each(n, b).mean(), 8),
    "mask": (Net, lambda n, b: kept(n, b) / b["mask"].sum(), 4),
    "at_least_one": (Net, lambda n, b: kept(n, b) / jnp.maximum(b["mask"].sum(), 1), 4),
    "little_added": (Net, lambda n, b: kept(n, b) / (b["mask"].sum() + 1e-3), 4),
    "one_for_none": (
        Net,
        lambda n, b: kept(n, b) / jnp.where(b["mask"].sum() == 0, 1.0, b["mask"].sum()),
        4,
    ),
    "one_unless_some": (
        Net,
        lambda n, b: kept(n, b) / jnp.where(b["mask"].sum() > 0, b["mask"].sum(), 1.0),
        4,
    ),
    "less_than_one": (
        Net,
        lambda n, b: (each(n, b) * b["mask"] / 9).sum() / jnp.maximum((b["mask"] / 9).sum(), 1),
        4 / 9,
    ),
    "guarded": (
        Net,
        lambda n, b: jnp.where(b["mask"].sum() > 0, kept(n, b) / b["mask"].sum(), 0.0),
        4,
    ),
    "where": (Net, lambda n, b: jnp.mean(each(n, b), where=b["mask"] > 0), 4),
    "average": (Net, lambda n, b: jnp.average(each(n, b), weights=b["count"]), 27),
    "reciprocal": (Net, lambda n, b: kept(n, b) * (1 / b["mask"].sum()), 4),
    "penalised": (
        Net,
        lambda n, b: kept(n, b) / b["mask"].sum() + 1e-2 * (n.up.kernel[...] ** 2).sum(),
        4,
    ),
    "half": (Net, lambda n, b: 0.5 * kept(n, b) / b["mask"].sum(), 4),
}
NO_MEANS = {
    "guarded_by_another": (
        Net,
        lambda n, b: kept(n, b) / jnp.where(b["count"].sum() == 0, b["mask"].sum(), 2.0),
    ),
    "sum": (Net, lambda n, b: each(n, b).sum()),
    "root": (Net, lambda n, b: jnp.sqrt(each(n, b).mean())),
    "two_means": (Net, lambda n, b: kept(n, b) / b["mask"].sum() + each(n, b).mean()),
    # Of the rows that are tried, every other one keeps as many as the rest do.
    "two_means_of_halves_alike": (
        Net,
        lambda n, b: each(n, b).mean(where=b["kept"]) + each(n, b).mean(),
    ),
    "in_batch_negatives": (
        Net,
        lambda n, b: optax.softmax_cross_entropy_with_integer_labels(
            n(b["x"]) @ b["y"].T, jnp.arange(len(b["x"]))
        ).mean(),
    ),
    "batch_statistics": (Normed, lambda n, b: each(n, b).mean()),
    "rank": (Net, lambda n, b: jnp.median(each(n, b))),
    "ratio": (Net, lambda n, b: each(n, b).sum() / (n(b["x"]) ** 2).sum()),
    # Zero in any part and in the whole, at the start: only the gradient tells.
    "normalised_by_the_batch": (
        Net,
        lambda n, b: (
            jnp.exp(each(n, b) - jax.lax.stop_gradient(each(n, b)))
            * (b["count"] - b["count"].mean())
        ).mean(),
    ),
}


@cache
def model_of(kind, loss):
    return jaxpar.model(kind, loss, batch())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_mean_weighs_what_it_is_a_mean_over(name):
    """The weight is the last divisor of the batch alone, else rows; and the loss is as it was."""
    kind, loss, weight = WEIGHTS[name]
    model = model_of(kind, loss)
    traced = traced_loss(model, train=name == "dropout")
    module = kind(rngs=nnx.Rngs(0))
    values = {
        "/".join(map(str, path)): variable[...]
        for path, variable in nnx.to_flat_state(nnx.state(module))
    }
    key = jax.random.key(0) if name == "dropout" else None
    args = traced.flat({p: v for p, v in values.items() if p in traced.arguments}, {}, batch(), key)
    run = jax.jit(jaxpr_as_fun(traced.closed), compiler_options=QUICK)
    mean, _, _ = traced.unflat(run(*args))
    assert float(mean.weight) == pytest.approx(weight, rel=1e-6)
    if name != "dropout":
        assert float(mean.value) == pytest.approx(float(loss(module, batch())), rel=1e-5)
    assert in_parts(model, cpu()).reason == ""


@pytest.mark.parametrize("name", NO_MEANS)
def test_a_loss_that_is_no_mean_is_refused_in_microbatches_and_taken_whole(name):
    """With the sentence that names the repair."""
    model = model_of(*NO_MEANS[name])
    layout = jaxpar.lay_out(
        model, strategy=load_strategy("data"), mesh=jaxpar.MeshShape.parse("data=2")
    )
    jaxpar.compile_step(jaxpar.make_step(layout), hardware=cpu(), for_speed=False)
    with pytest.raises(
        jaxpar.RequestError, match="with 2 microbatches it would be another loss.*use one microb"
    ):
        step = jaxpar.make_step(layout, microbatches=2)
        jaxpar.compile_step(step, hardware=cpu(), for_speed=False)


def test_a_masked_mean_in_microbatches_is_that_of_the_whole_batch():
    """Verify compares with the whole batch on one device, whatever a layout makes of it."""
    layout = jaxpar.lay_out(
        model_of(*WEIGHTS["mask"][:2]),
        strategy=load_strategy("data"),
        mesh=jaxpar.MeshShape.parse("data=2"),
    )
    make = partial(jaxpar.make_step, microbatches=2)
    verdict = jaxpar.verify(layout, hardware=cpu(), make=make, steps=1)
    assert verdict.ok, verdict.decisive
    assert verdict.algorithm == "one step for the whole batch"


@pytest.mark.parametrize("mode", ["auto", "explicit", "manual"])
@pytest.mark.parametrize(
    "name",
    [
        *["at_least_one", "little_added", "one_for_none", "one_unless_some", "less_than_one"],
        "penalised",
    ],
)
def test_a_mean_is_that_of_the_whole_batch_whatever_the_mask(name, mode):
    """In parts of which one, or all, have no weight: as the whole, and no number is lost."""
    rows = batch()
    net = Net(rngs=nnx.Rngs(0))
    layout = jaxpar.lay_out(model_of(*WEIGHTS[name][:2]), strategy="data", mesh="data=2")
    step = jaxpar.make_step(layout, mode=mode, microbatches=2)
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    state = program.init(0)
    for path, value in state.parameters.items():
        layer, array = path.split("/")
        getattr(getattr(net, layer), array)[...] = value
    for mask in (rows["mask"], np.eye(8, dtype="float32")[0], np.zeros(8, "float32")):
        given = rows | {"mask": mask}
        right, gradient = nnx.value_and_grad(WEIGHTS[name][1])(net, given)
        got, _, metrics = program.gradients(state, program.place(given))
        assert float(metrics["loss"]) == pytest.approx(
            float(right), rel=1e-5, abs=1e-7, nan_ok=True
        )
        for path, value in got.items():
            layer, array = path.split("/")
            np.testing.assert_allclose(value, gradient[layer][array][...], rtol=1e-4, atol=1e-6)


def test_a_masked_mean_with_dropout_is_verified_in_microbatches():
    """One device draws in each microbatch too, and each weighs what its mask keeps."""
    model = jaxpar.model(Dropped, WEIGHTS["mask"][1], batch())
    layout = jaxpar.lay_out(model, strategy="data", mesh="data=2")
    make = partial(jaxpar.make_step, microbatches=2)
    verdict = jaxpar.verify(layout, hardware=cpu(), make=make, steps=1)
    assert verdict.ok, verdict.decisive
    assert verdict.algorithm.startswith("one step in 2 microbatches")


def test_replicas_of_local_sgd_have_losses_that_are_means_and_statistics_of_their_own():
    """A sum is another loss of a replica's rows; batch statistics are each replica's, as stated."""
    for name, refused in (("sum", True), ("rank", True), ("batch_statistics", False)):
        layout = jaxpar.lay_out(model_of(*NO_MEANS[name]), strategy="local_sgd", mesh="replica=2")
        step = jaxpar.make_step(layout)
        if refused:
            with pytest.raises(jaxpar.RequestError, match="a replica's own rows.*strategy 'data'"):
                jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
        else:
            jaxpar.compile_step(step, hardware=cpu(), for_speed=False)


def test_parts_weighed_by_rows_are_convicted(monkeypatch):
    """The law above can fail: without the weight a mean of means differs from the whole."""
    from jaxpar.inference import traced

    monkeypatch.setattr(traced, "weighed", lambda traced, parameters: traced)
    model = jaxpar.model(Net, WEIGHTS["mask"][1], batch())
    assert "its loss of a batch is" in in_parts(model, cpu()).reason


def test_metrics_have_weights_of_their_own():
    """One over rows, one over what a mask keeps."""

    def loss(net, b):
        right = (each(net, b) < 9) * b["mask"]
        return each(net, b).mean(), {"right": right.sum() / b["mask"].sum()}

    traced = traced_loss(model_of(Net, loss))
    shapes = traced.unflat(traced.closed.jaxpr.outvars)
    assert set(shapes[1]) == {"right"}
    layout = jaxpar.lay_out(
        model_of(Net, loss), strategy=load_strategy("single"), mesh=jaxpar.MeshShape.parse("data=1")
    )
    found = []
    for parts in (1, 2):
        step = jaxpar.make_step(layout, microbatches=parts)
        program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
        found.append(program.gradients(program.init(0), program.place(batch()))[2]["right"])
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-5)


def test_a_metric_that_is_no_mean_is_said_where_it_is_had_in_parts():
    """In a step of microbatches, and over the batches of a test split; the loss is as ever."""

    def loss(net, b):
        close = each(net, b) < 9
        return each(net, b).mean(), {"close": close.sum(), "near": close.mean()}

    model = model_of(Net, loss)
    assert in_parts(model, cpu()) == InParts(metrics=("close",))
    data = jaxpar.data.iterable.dataset([batch()], test=[batch(), batch()])
    layout = jaxpar.lay_out(model, strategy="data", mesh="data=2")
    step = jaxpar.make_step(layout, microbatches=2)
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    outcome = jaxpar.train(program, data, jaxpar.Training(steps=1))
    assert outcome.notes == (
        "metric 'close' is no mean over rows: it is of a step the mean over its 2 microbatches",
        "metric 'close' is no mean over rows: it is of the test split the mean over its batches of "
        "8 rows",
    )
