"""Evaluation draws nothing and keeps running statistics, wherever a loss writes its flag."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxpar
from jaxpar.inference.traced import traced_loss
from jaxpar.jaxprs.equations import equations

BATCH = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype("float32")}


class Linen(linen.Module):
    """Dropout and batch statistics behind a flag that is an argument."""

    @linen.compact
    def __call__(self, x, train):
        h = linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x))
        return linen.Dense(4)(linen.Dropout(0.5, deterministic=not train)(h))


class Written(linen.Module):
    """The same, written into the layers."""

    @linen.compact
    def __call__(self, x):
        h = linen.BatchNorm(use_running_average=False)(linen.Dense(8)(x))
        return linen.Dense(4)(linen.Dropout(0.5, deterministic=False)(h))


class Transformed(linen.Module):
    """With a layer that is called under one of Flax's transforms, by a function of its own."""

    @linen.compact
    def __call__(self, x, train):
        return Linen()(linen.SpectralNorm(linen.Dense(6))(x, update_stats=True), train)


class Kept(linen.Module):
    """The same, as a field of the module."""

    training: bool = True

    @linen.compact
    def __call__(self, x):
        return Linen()(x, self.training)


class Nnx(nnx.Module):
    """Dropout and batch statistics behind flags of each layer."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, deterministic=False):
        h = self.norm(self.up(x), use_running_average=deterministic)
        return self.down(self.dropout(h, deterministic=deterministic))


class Noisy(nnx.Module):
    """Noise of its own, switched by an attribute."""

    def __init__(self, rngs):
        self.up, self.rngs, self.training = nnx.Linear(6, 4, rngs=rngs), rngs, True

    def __call__(self, x):
        noise = jax.random.normal(self.rngs.noise(), x.shape) if self.training else 0.0
        return self.up(x + noise)


def square(y):
    return jnp.mean(y**2)


CASES = {
    "by_name": (Linen(), lambda net, b: square(net(b["x"], train=True))),
    "by_position": (Linen(), lambda net, b: square(net(b["x"], True))),
    "transformed": (Transformed(), lambda net, b: square(net(b["x"], train=True))),
    "in_the_layers": (Written(), lambda net, b: square(net(b["x"]))),
    "a_field": (Kept(), lambda net, b: square(net(b["x"]))),
    "nnx_by_default": (Nnx, lambda net, b: square(net(b["x"], deterministic=False))),
    "nnx_layer": (Nnx, lambda net, b: square(net.dropout(net.up(b["x"]), deterministic=False))),
    "nnx_attribute": (Noisy, lambda net, b: square(net(b["x"]))),
    "asked": (Linen(), lambda net, b, train: square(net(b["x"], train))),
    "asked_otherwise": (
        Nnx,
        lambda net, b, deterministic: square(net(b["x"], deterministic=deterministic)),
    ),
}


def draws(traced) -> bool:
    return any(eqn.primitive.name == "random_bits" for eqn, _ in equations(traced.closed))


@pytest.mark.parametrize("name", CASES)
def test_evaluation_draws_nothing_and_training_does(name):
    """Nor does it change statistics; and there is nothing to be said about it."""
    module, loss = CASES[name]
    model = jaxpar.model(module, loss, BATCH)
    assert draws(traced_loss(model))
    evaluated = traced_loss(model, train=False)
    assert not draws(evaluated) and evaluated.says == ()
    assert draws(traced_loss(model))


def test_evaluation_is_that_of_the_module_told_so():
    """The numbers of Flax's own call with the flag the other way."""
    module, loss = CASES["by_name"]
    model = jaxpar.model(module, loss, BATCH)
    layout = jaxpar.lay_out(
        model, strategy=jaxpar.STRATEGIES.load("single")(), mesh=jaxpar.MeshShape(data=1)
    )
    program = jaxpar.compile_step(
        jaxpar.make_step(layout), hardware=jaxpar.HARDWARE.load("cpu")(), for_speed=False
    )
    state, placed = program.init(0), program.place(BATCH)
    values = {**state.parameters, **state.model_state}
    kinds = {"params": ("kernel", "bias", "scale"), "batch_stats": ("mean", "var")}
    variables = {
        kind: {
            layer: {
                p.split("/")[1]: v
                for p, v in values.items()
                if p.startswith(f"{layer}/") and p.split("/")[1] in names
            }
            for layer in ("BatchNorm_0", "Dense_0", "Dense_1")
        }
        for kind, names in kinds.items()
    }
    expected = square(module.apply(variables, BATCH["x"], train=False))
    assert float(program.evaluate(state, placed)["loss"].value) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_what_cannot_be_switched_off_is_said():
    """Noise that no flag reaches, and statistics that a person's own code keeps."""

    class Always(nnx.Module):
        def __init__(self, rngs):
            self.up, self.rngs = nnx.Linear(6, 4, rngs=rngs), rngs
            self.seen = nnx.BatchStat(jnp.zeros(4))

        def __call__(self, x):
            y = self.up(x + jax.random.normal(self.rngs.noise(), x.shape))
            self.seen[...] = 0.9 * self.seen[...] + 0.1 * y.mean(0)
            return y

    model = jaxpar.model(Always, lambda net, b: square(net(b["x"])), BATCH)
    drawn, changed = traced_loss(model, train=False).says
    assert "draws random numbers" in drawn and "loss(model, batch, train)" in drawn
    assert "changes seen" in changed


def test_a_loss_that_asks_is_asked_too_where_it_says_constraints_of_its_own():
    """Whatever is set aside of it, the flag is handed on."""

    def loss(net, b, train):
        y = jax.lax.with_sharding_constraint(net(b["x"], train), jax.P("data"))
        return square(y)

    model = jaxpar.model(Linen(), loss, BATCH)
    assert any("set aside" in note for note in model.notes)
    assert draws(traced_loss(model)) and not draws(traced_loss(model, train=False))
