"""What `verify` judges by: the user's own numbers, one device's own rounding, one function."""

import itertools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import cpu

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.inference.probe import probe_batch
from jaxpar.measures.verify.precision import update_rounding

pytestmark = pytest.mark.usefixtures("drawn_once")


class Net(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def example(rows=16):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((rows, 8)), "a": rng.standard_normal(rows)}


def judged(model, strategy="data", mesh="data=4", **how):
    layout = jaxpar.lay_out(
        model, strategy=load_strategy(strategy), mesh=jaxpar.MeshShape.parse(mesh)
    )
    return jaxpar.verify(layout, hardware=cpu(), steps=1, **how)


def ppo(net, b):
    """Zero but for rounding at the first step, its gradient not."""
    logp = jax.nn.log_softmax(net(b["x"]))[:, 0]
    ratio = jnp.exp(logp - jax.lax.stop_gradient(logp))
    return -(ratio * (b["a"] - b["a"].mean()) / b["a"].std()).mean()


def test_a_loss_near_zero_is_judged_by_the_rounding_of_one_device():
    """And its gradient, which is no rounding, as tightly as ever."""
    verdict = judged(jaxpar.model(Net, ppo, example()))
    assert verdict.ok, verdict.decisive
    checks = {check.name: check for check in verdict.checks}
    assert checks["gradient"].bound == 1e-9 and checks["gradient"].own_rounding < 1e-9


def by_narrow_norm(updates, state, params=None):
    """Updates divided by their norm, which is summed in float32."""
    norm = jnp.sqrt(sum(jnp.sum(jnp.float32(x) ** 2) for x in jax.tree.leaves(updates)))
    return jax.tree.map(lambda x: -0.1 * x / norm.astype(x.dtype), updates), state


def test_an_optimizer_that_rounds_is_judged_by_its_own_precision():
    """Sums over shards round otherwise; the gradient is judged as tightly as ever."""
    optimizer = optax.GradientTransformation(lambda params: (), by_narrow_norm)
    layout = jaxpar.lay_out(
        jaxpar.model(Net, lambda net, b: (net(b["x"]) ** 2).mean(), example()),
        strategy=load_strategy("fsdp", whole_below=0),
        mesh="data=4",
    )
    make = partial(jaxpar.make_step, optimizer=optimizer)
    assert update_rounding(make(layout)) == pytest.approx(1.2e-7, rel=0.01)
    verdict = jaxpar.verify(layout, hardware=cpu(), make=make)
    assert verdict.ok, verdict.decisive
    checks = {check.name: check for check in verdict.checks}
    assert checks["gradient"].bound == 1e-9
    assert 1e-9 < checks["state after 3 steps"].error < checks["state after 3 steps"].bound < 1e-5


class Chained(nnx.Module):
    """Differences of nearly equal numbers, divided by their spread, again and again."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(6)])
        self.norms = nnx.List([nnx.BatchNorm(8, epsilon=1e-20, rngs=rngs) for _ in range(6)])

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(1.0 + 1e-4 * layer(x))
        return x


def test_an_ill_conditioned_model_is_not_convicted_of_its_rounding():
    """The bound is widened, and the verdict says for what."""
    verdict = judged(jaxpar.model(Chained, lambda net, b: (net(b["x"]) ** 4).mean(), example(8)))
    assert verdict.ok, verdict.decisive
    widened = [check for check in verdict.checks if check.own_rounding]
    assert any(1e-9 < check.error <= check.bound <= 1e-3 for check in widened)


def test_a_mistake_in_an_ill_conditioned_model_is_still_caught():
    """A gradient that is off by a thousandth is no rounding, however wide the bound."""
    from dataclasses import replace

    model = jaxpar.model(Chained, lambda net, b: (net(b["x"]) ** 4).mean(), example(8))

    def make(layout):
        step = jaxpar.make_step(layout)

        def probe(state, batch):
            gradients, kept, metrics = step.gradients(state, batch)
            wrong = {path: 1.002 * g for path, g in gradients.items()}
            return step.apply(state, wrong, kept, metrics["loss"]), metrics, wrong

        return replace(step, probe=probe)

    verdict = judged(model, make=make)
    assert not verdict.ok and verdict.decisive.name == "gradient"


COUNT = itertools.count()
IMPURE = {
    "numpy": lambda net, b: (net(b["x"]) ** 2).mean() * np.random.default_rng().uniform(),
    "noise": lambda net, b: (net(b["x"] + np.random.default_rng().normal(size=(1, 8))) ** 2).mean(),
    "time": lambda net, b: (net(b["x"]) ** 2).mean() * (time.perf_counter() % 7),
    "counter": lambda net, b: (net(b["x"]) ** (2 + next(COUNT) % 5)).mean(),
}


@pytest.mark.parametrize("name", IMPURE)
def test_a_loss_that_is_another_function_each_time_is_told_so(name):
    """By the line at which it differs, and not as a wrong layout."""
    model = jaxpar.model(Net, IMPURE[name], example())
    with pytest.raises(
        jaxpar.RequestError, match="another function each time.*differs.*jax.random"
    ):
        judged(model)


def test_probe_rows_are_the_users_integer_fields_too():
    """Lengths that a random draw would make 0, and rows that stay together."""
    lengths = np.array([3, 5, 2, 4, 1, 6], "int32")
    x = np.repeat(lengths[:, None], 6, 1).astype("float32") + np.arange(6, dtype="float32")[None]

    def loss(net, b):
        kept = jnp.arange(6)[None] < b["length"][:, None]
        mean = jnp.sum(jnp.where(kept, b["x"], 0), 1) / b["length"]
        return jnp.mean(net(jnp.repeat(mean[:, None], 8, 1)) ** 2)

    model = jaxpar.model(Net, loss, {"x": x, "length": lengths})
    batch = probe_batch(model.with_batch_size(8), seed=0)
    assert set(batch["length"]) == set(lengths)
    np.testing.assert_array_equal(batch["x"][:, 0], batch["length"])
    assert judged(model, mesh="data=2").ok


def test_a_field_that_only_shows_its_shape_is_drawn():
    """Ones all over would hide what is summed where."""
    model = jaxpar.model(
        Net, lambda net, b: (net(b["x"]) ** 2).mean(), {"x": np.ones((8, 8), "float32")}
    )
    assert probe_batch(model, seed=0)["x"].std() > 0.5
