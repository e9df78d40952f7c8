"""Running averages of weights in a model's state are stored as the weights are, and gathered only
for what uses them as weights are used."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import cpu

import jaxpar
from jaxpar.measures.replicated import MODEL, notable, replicated

WIDTH, INNER = 64, 256
FLOAT = 4


class Average(nnx.Variable):
    """A running average."""


def frozen(x):
    return jax.lax.stop_gradient(x)


class Gated(nnx.Module):
    """Averages of a matrix that is stored in pieces, and of one that a target network uses."""

    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, 2 * INNER, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(INNER, WIDTH, use_bias=False, rngs=rngs)
        self.up_average = Average(jnp.zeros((WIDTH, 2 * INNER)))
        self.down_average = Average(jnp.zeros((INNER, WIDTH)))

    def __call__(self, x):
        self.up_average[...] = 0.9 * self.up_average[...] + 0.1 * frozen(self.up.kernel[...])
        before = self.down_average[...]
        self.down_average[...] = before + 0.1 * (frozen(self.down.kernel[...]) - before)
        gate, up = jnp.split(self.up(x), 2, axis=-1)
        hidden = nnx.silu(gate) * up
        return x + self.down(hidden) - frozen(hidden @ self.down_average[...])


class Averaged(linen.Module):
    """Each average is called as its weight is, in a collection of its own."""

    @linen.compact
    def __call__(self, x):
        shapes = {"up": (WIDTH, INNER), "down": (INNER, WIDTH)}
        draw = linen.initializers.lecun_normal()
        weights = {name: self.param(name, draw, shape) for name, shape in shapes.items()}
        for name, shape in shapes.items():
            average = self.variable("ema", name, jnp.zeros, shape)
            if not self.is_initializing():
                average.value = 0.9 * average.value + 0.1 * frozen(weights[name])
        return x + linen.relu(x @ weights["up"]) @ weights["down"]


class Book(nnx.Module):
    """A codebook that learns by itself: none of its rows is a weight's."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, INNER, rngs=rngs)
        self.book = Average(jax.random.normal(rngs.params(), (512, INNER)))

    def __call__(self, x):
        y = self.linear(x)
        self.book[...] = 0.99 * self.book[...] + 0.01 * frozen(y).mean()
        return (
            jnp.mean((y - frozen(y @ self.book[...].T) @ self.book[...]) ** 2, -1, keepdims=True)
            * x
        )


def model_of(module):
    def loss(net, batch):
        return jnp.mean((net(batch["x"]) - batch["y"]) ** 2)

    x = jax.ShapeDtypeStruct((16, WIDTH), "float32")
    return jaxpar.model(module, loss, {"x": x, "y": x})


def judged(layout, mode):
    """The step and what of its gathers each device has afterwards, its numbers found right."""

    def make(layout):
        return jaxpar.make_step(layout, mode=mode)

    verdict = jaxpar.verify(layout, hardware=cpu(), make=make, steps=2)
    assert verdict.ok, verdict.decisive
    step = make(layout)
    inspection = jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False))
    assert not inspection.faults
    gathered = sum(row.bytes for row in inspection.collectives if row.kind == "all-gather")
    assert not notable(replicated(step), layout)
    return gathered


@pytest.mark.parametrize("mode", ["auto", "manual", "explicit"])
def test_an_average_is_stored_as_its_weight_and_gathered_only_where_it_is_used(mode):
    layout = jaxpar.lay_out(model_of(Gated), strategy="fsdp", mesh="data=4")
    stored = {path: array.stored for path, array in layout.parameters.items()}
    for average, weight in (("up_average/0", "up/kernel/0"), ("down_average", "down/kernel")):
        assert layout.state[average].stored == stored[weight] != layout.state[average].used
    gathered = judged(layout, mode)
    weights, target = 3 * WIDTH * INNER * FLOAT, WIDTH * INNER * FLOAT
    if mode != "explicit":  # where each operand has its sharding before it is known what is done
        assert gathered == weights + target


def test_what_tensor_shards_further_is_stored_so():
    layout = jaxpar.lay_out(model_of(Gated), strategy="fsdp+tensor", mesh="data=2,model=2")
    array = layout.state["up_average/1"]
    assert (tuple(array.stored), tuple(array.used)) == (("data", "model"), (None, "model"))
    judged(layout, "auto")


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_linen_averages_may_be_called_as_the_weights_are(mode):
    layout = jaxpar.lay_out(model_of(Averaged()), strategy="fsdp", mesh="data=4")
    for name in ("up", "down"):
        assert layout.state[f"{name} (ema)"].stored == layout.parameters[name].stored
    assert judged(layout, mode) == 2 * WIDTH * INNER * FLOAT


def test_an_average_of_pieces_is_kept_for_other_rows():
    """The loss is then called by Python anew, its variables whole meanwhile."""
    layout = jaxpar.lay_out(model_of(Gated), strategy="fsdp", mesh="data=4")
    program = jaxpar.compile_step(jaxpar.make_step(layout.with_rows(8)), hardware=cpu())
    state = program.init(0)
    before = state.model_state["up_average/1"]
    assert not np.any(before)
    weight = jax.device_get(state.parameters["up/kernel/1"])
    rows = np.ones((8, WIDTH), np.float32)
    state, _ = program.update(state, program.place({"x": rows, "y": rows}))
    after = jax.device_get(state.model_state["up_average/1"])
    assert np.allclose(after, 0.1 * weight)


def test_what_is_no_weights_is_listed_as_ever():
    layout = jaxpar.lay_out(model_of(Book), strategy="fsdp", mesh="data=4")
    (book,) = notable(replicated(jaxpar.make_step(layout)), layout)
    assert (book.group, book.path) == (MODEL, "model_state/book")
