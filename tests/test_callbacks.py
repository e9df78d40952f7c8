"""A model may call Python while it runs: to print, to read, to write."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import io_callback

import jaxpar
from jaxpar.case import load_strategy

pytestmark = pytest.mark.usefixtures("drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
BATCH = {"x": np.random.default_rng(0).standard_normal((8, 16)).astype("float32")}
MODES = ("auto", "explicit", "manual")
SEEN: list[tuple[int, ...]] = []


def seen(x):
    SEEN.append(np.shape(x))


def printed(h):
    jax.debug.print("largest of {shape}: {x}", x=h.max(), shape=h.shape)
    return h


def called(h):
    jax.debug.callback(seen, h)
    return h


def called_in_a_loop(h):
    def body(h, _):
        jax.debug.callback(seen, h)
        return h + 1, None

    return jax.lax.scan(body, h, None, length=2)[0]


def written(h):
    io_callback(seen, None, jax.lax.stop_gradient(h))
    return h


def read(h):
    kind = jax.ShapeDtypeStruct((), "float32")
    return h * io_callback(lambda x: np.float32(2), kind, jax.lax.stop_gradient(h))


def computed(h):
    kind = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return h + jax.pure_callback(np.sign, kind, jax.lax.stop_gradient(h))


def model_of(does):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.down(does(nnx.relu(self.up(x))))

    return jaxpar.model(Net, lambda m, b: (m(b["x"]) ** 2).mean(), BATCH)


def laid_out(does):
    mesh = jaxpar.MeshShape.parse("data=2,model=2")
    return jaxpar.lay_out(model_of(does), strategy=load_strategy("hybrid"), mesh=mesh)


@pytest.mark.parametrize(
    ("does", "mode"),
    list(zip((printed, called, written, read, computed, called_in_a_loop), MODES * 2, strict=True)),
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_model_with_a_callback_is_what_it_is_on_one_device(does, mode):
    make = partial(jaxpar.make_step, mode=mode)
    verdict = jaxpar.verify(laid_out(does), hardware=CPU, make=make, steps=1)
    assert verdict.ok, verdict.decisive


@pytest.mark.parametrize("does", [called, written])
@pytest.mark.parametrize("mode", MODES)
def test_a_callback_is_made_once_of_the_whole_array(does, mode):
    """As on one device, whatever the mode."""
    step = jaxpar.make_step(laid_out(does), mode=mode)
    program = jaxpar.compile_step(step, hardware=CPU, for_speed=False)
    state, batch = program.init(0), program.place(BATCH)
    SEEN.clear()
    jax.block_until_ready(program.update(state, batch))
    jax.effects_barrier()
    assert SEEN == [(8, 32)]


def test_what_prints_costs_no_split():
    """The width is sharded as without it; what a callback computes from needs all of it."""
    roles = {d.size: d.role for d in model_of(printed).named}
    assert roles[32] == "inner"
    whole = {d.size: d.whole_because + d.whole_at for d in model_of(computed).named}
    assert "pure_callback" in whole[32] and "test_callbacks.py" in whole[32]


def test_ordered_callbacks_are_let_go_of_their_order_and_said():
    def ordered(h):
        jax.debug.print("{x}", x=h.max(), ordered=True)
        jax.debug.callback(seen, h, ordered=True)
        return h

    layout = laid_out(ordered)
    assert any("ordered callbacks run in any order" in note for note in layout.notes)
    assert jaxpar.verify(layout, hardware=CPU, steps=1).ok


def looped(h):
    return jax.lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, h)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (lambda h: io_callback(seen, None, h) or h, "io_callback .*stop_gradient"),
        (lambda h: jax.pure_callback(lambda x: x, h, h), "pure_callback .*custom_vjp"),
        (looped, "while .*test_callbacks.py.*fixed number of turns"),
    ],
    ids=["io", "pure", "while"],
)
def test_a_loss_without_a_gradient_is_one_sentence_at_the_door(does, says):
    with pytest.raises(jaxpar.RequestError, match=f"has no gradient.*{says}"):
        model_of(does)
    assert model_of(lambda h: h + 0 * jnp.float32(looped(jax.lax.stop_gradient(h)).sum()))
