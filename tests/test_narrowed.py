"""A weight that is cast before anything else is done with it is cast before it is gathered."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxpar
from jaxpar.step.make_step import make_step
from jaxpar.step.narrowed import narrowed, read_again
from jaxpar.step.rewritten import rewritten_loss

BF16 = jnp.dtype("bfloat16")


def model_of(apply):
    """A model with one matrix, which `apply(matrix, x)` uses."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.matrix = nnx.Param(jax.random.normal(rngs.params(), (64, 64)))

    def loss(net, batch):
        return jnp.mean(apply(net.matrix[...], batch["x"]).astype(jnp.float32) ** 2)

    return jaxpar.model(Net, loss, {"x": jax.ShapeDtypeStruct((8, 64), jnp.bfloat16)})


def scanned(w, x):
    return jax.lax.scan(lambda y, _: (y @ w.astype(BF16), None), x, None, length=2)[0]


def carried(w, x):
    def turn(c, _):
        return (2 * c[0], c[1] @ c[0].astype(BF16)), None

    return jax.lax.scan(turn, (w, x), None, length=2)[0][1]


@pytest.mark.parametrize(
    ("apply", "is_narrowed"),
    [
        (lambda w, x: x @ w.astype(BF16), True),
        (lambda w, x: x @ w.T.astype(BF16), True),
        (lambda w, x: jax.checkpoint(lambda w: jnp.tanh(x @ w.astype(BF16)))(w), True),
        (scanned, True),
        (lambda w, x: x @ w, False),
        (lambda w, x: x @ w.astype(BF16) + jnp.sum(w).astype(BF16), False),
        (lambda w, x: x @ w.astype(BF16) + (x @ w.T.astype(BF16)), False),
        (lambda w, x: x @ (2 * w).astype(BF16), False),
        (carried, False),
    ],
    ids=[
        "cast", "turned", "computed again", "in a loop", "as it is", "summed too", "cast twice",
        "doubled", "carried",
    ],
)  # fmt: skip
def test_the_one_cast_of_a_weight_is_found(apply, is_narrowed):
    found = narrowed(rewritten_loss(model_of(apply)))
    assert found == ({"matrix": BF16} if is_narrowed else {})


def test_it_is_gathered_and_its_gradient_summed_in_the_narrow_type():
    """By the constraints of the step's own trace: those of the matrix are of bfloat16 arrays."""
    strategy = jaxpar.STRATEGIES.load("fsdp")(whole_below=0)
    layout = jaxpar.lay_out(
        model_of(lambda w, x: x @ w.astype(BF16)), strategy=strategy, mesh="data=4"
    )
    eqns = make_step(layout).traced.closed.jaxpr.eqns
    moved = [e.outvars[0].aval for e in eqns if e.primitive.name == "sharding_constraint"]
    assert {x.dtype for x in moved if x.shape == (64, 64)} >= {BF16}
    first = next(x for x in moved if x.shape == (64, 64))
    assert first.dtype == BF16


def test_what_only_a_rematerialized_part_reads_is_gathered_again_in_backward():
    """And what is read outside too is gathered once, and kept."""

    def within(w, x):
        return jax.checkpoint(lambda w: jnp.tanh(x @ w.astype(BF16)))(w)

    def outside_too(w, x):
        return within(w, x) @ w.astype(BF16)

    for apply, gathers in ((within, 2), (outside_too, 1)):
        model = model_of(apply)
        assert read_again(rewritten_loss(model)) == (
            frozenset({"matrix"}) if gathers == 2 else set()
        )
        strategy = jaxpar.STRATEGIES.load("fsdp")(whole_below=0)
        layout = jaxpar.lay_out(model, strategy=strategy, mesh="data=4")
        program = jaxpar.compile_step(make_step(layout), hardware="cpu", for_speed=False)
        rows = [r for r in jaxpar.inspect(program).collectives if r.kind == "all-gather"]
        assert sum(row.count for row in rows) == gathers
