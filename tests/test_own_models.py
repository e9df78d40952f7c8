"""A user's own model: what it may leave out, and what it is told when it goes wrong."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxpar

pytestmark = pytest.mark.usefixtures("drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()


class Dropping(nnx.Module):
    """Two layers with names, and dropout that holds a random stream of its own."""

    def __init__(self, rngs):
        def cut(*dims):
            return nnx.with_partitioning(nnx.initializers.lecun_normal(), dims)

        self.up = nnx.Linear(8, 32, use_bias=False, kernel_init=cut("pixels", "wide"), rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.down = nnx.Linear(32, 4, use_bias=False, kernel_init=cut("wide", "out"), rngs=rngs)

    def __call__(self, x):
        return self.down(self.drop(jax.nn.relu(self.up(x))))


def squares(module, batch, *, key=None):
    error = jnp.mean((module(batch["x"]) - batch["y"]) ** 2, axis=-1)
    return jaxpar.weighted_mean(error, batch["weight"]), {}


def own(**changes):
    return jaxpar.Model(
        **{
            "name": "own",
            "build": Dropping,
            "loss": squares,
            "batch": {
                "x": jaxpar.Field((16, 8), "float32", ("batch", "pixels")),
                "y": jaxpar.Field((16, 4), "float32", ("batch", "out")),
                "weight": jaxpar.Field((16,), "float32", ("batch",)),
            },
            "roles": {"wide": "inner"},
            **changes,
        }
    )


def laid_out(model, strategy="hybrid"):
    return jaxpar.lay_out(
        model,
        strategy=jaxpar.STRATEGIES.load(strategy)(),
        mesh=jaxpar.MeshShape(data=4, model=2),
    )


def test_a_module_with_a_random_stream_of_its_own_is_verified():
    """Its key is state that a step carries; masks are those of one device."""
    verdict = jaxpar.verify(laid_out(own()), hardware=CPU)
    assert verdict.ok and verdict.dtype == "float64"
    assert any("drop" in path for path in laid_out(own()).state)


@pytest.mark.parametrize(
    ("returned", "met"),
    [
        (lambda mean: mean.value, "DynamicJaxprTracer"),
        (lambda mean: mean, "Mean"),
        (lambda mean: None, "NoneType"),
        (lambda mean: (mean, {"error": mean.value}), "tuple"),
    ],
    ids=["a number", "a mean alone", "nothing", "a metric that is a number"],
)
def test_a_loss_that_returns_something_else_is_told_what_to_return(returned, met):
    """One sentence with the model's name, what was met, and the line to write."""

    def loss(module, batch, *, key=None):
        return returned(squares(module, batch)[0])

    with pytest.raises(jaxpar.RequestError, match=r"'own': its loss returned .*weighted_mean"):
        step = jaxpar.make_step(laid_out(own(loss=loss)))
        jax.eval_shape(step.gradients, step.state, step.batch)


def test_a_loss_without_a_key_is_refused_at_once():
    """The repair is in the sentence."""
    with pytest.raises(jaxpar.RequestError, match=r"takes no 'key': declare .*key=\s*None"):
        own(loss=lambda module, batch: squares(module, batch))


def test_a_misspelt_dim_in_the_roles_is_refused():
    """It would shard nothing, and nobody would know."""
    with pytest.raises(jaxpar.RequestError, match="unknown dim .*'wied': did you mean 'wide'"):
        laid_out(own(roles={"wied": "inner"}))


def test_a_strategy_that_finds_nothing_to_split_says_so():
    """The layout is right and useless; a note tells why."""
    notes = " ".join(laid_out(own(roles={}), "tensor").notes)
    assert "nothing of this model is sharded over mesh axis 'model'" in notes
    assert "nothing of this model" not in " ".join(laid_out(own(), "tensor").notes)


class Film(nnx.Module):
    """Rows are frames, two of them a film."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(jnp.tanh(self.up(x)).reshape(-1, 2, 16).mean(axis=1))


@pytest.mark.parametrize("mode", ["auto", "explicit", "manual"])
def test_rows_may_be_several_things(mode):
    """What a loss folds its rows into is split where it comes apart, and elsewhere said."""
    batch = {"x": jax.ShapeDtypeStruct((16, 8), "float32")}
    model = jaxpar.model(Film, lambda net, b: (net(b["x"]) ** 2).mean(), batch)
    for mesh, is_whole in (("data=4,model=2", True), ("data=16", False)):
        layout = jaxpar.lay_out(model, strategy="hybrid", mesh=mesh)
        make = partial(jaxpar.make_step, mode=mode)
        verdict = jaxpar.verify(layout, hardware=CPU, make=make, steps=1)
        assert verdict.ok, verdict.decisive
        assert verdict.program is not None
        # Read in single precision: the program knows what it was made for.
        assert jaxpar.inspect(verdict.program).ok == is_whole
