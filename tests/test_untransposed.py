"""Products turned so that no transpose is needed: the same numbers, and fewer operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small import DECODER, small_layout

from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.untransposed import untransposed
from jaxpar.step.make_step import make_step

ROWS, NARROW, WIDE = 12, 4, 6
DENSE = (NARROW, WIDE), (ROWS, NARROW)


def drawn(*shapes):
    """Arrays of these shapes, different everywhere."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def squared(y):
    return jnp.sum(jnp.sin(y) ** 2)


def dense(w, x):
    return squared(x @ w)


def scanned(w, x, *, unroll=1):
    return squared(lax.scan(lambda y, w: (jnp.tanh(y @ w), None), x, w, unroll=unroll)[0])


def chosen(w, x):
    return squared(lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ -w, w))


def precise(w, x):
    return squared(jnp.matmul(x, w, precision=(lax.Precision.HIGH, lax.Precision.HIGHEST)))


TURNED = {
    "dense": (dense, *DENSE),
    "rows in two dims": (dense, (NARROW, WIDE), (3, ROWS, NARROW)),
    "a weight of four dims": (
        lambda w, x: squared(jnp.einsum("bsd,dkch->bskch", x, w)),
        (NARROW, 2, 3, 5),
        (3, ROWS, NARROW),
    ),
    "a weight for each expert": (
        lambda w, x: squared(jnp.einsum("ebd,edf->ebf", x, w)),
        (3, NARROW, WIDE),
        (3, ROWS, NARROW),
    ),
    "as wide as narrow": (dense, (NARROW, NARROW), (ROWS, NARROW)),
    "jit": (lambda w, x: squared(jax.jit(jnp.matmul)(x, w)), *DENSE),
    "remat": (lambda w, x: jax.checkpoint(lambda w: squared(jnp.tanh(x @ w)))(w), *DENSE),
    "scan": (scanned, (3, NARROW, NARROW), (ROWS, NARROW)),
    "an unrolled scan": (
        lambda w, x: scanned(w, x, unroll=3),
        (3, NARROW, NARROW),
        (ROWS, NARROW),
    ),
    "cond": (chosen, *DENSE),
    "two precisions": (precise, *DENSE),
}
"""A loss of a weight and rows, whose gradient JAX makes transposed, and the two shapes."""

AS_THEY_ARE = {
    "narrowing": (dense, (WIDE, NARROW), (ROWS, WIDE)),
    "a weight stored turned": (
        lambda w, x: squared(x @ w.T),
        (WIDE, NARROW),
        (ROWS, NARROW),
    ),
}
"""Others whose products are to stay as JAX made them."""


def products_and_transposes(function, *args):
    """How many of each there are, in loops and branches too."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    primitives = [eqn.primitive for eqn, _ in equations(jaxpr)]
    return primitives.count(lax.dot_general_p), primitives.count(lax.transpose_p)


@pytest.mark.parametrize("name", TURNED | AS_THEY_ARE)
def test_numbers_stay(name):
    loss, *shapes = (TURNED | AS_THEY_ARE)[name]
    with jax.enable_x64(True):
        args = [x.astype("float64") for x in drawn(*shapes)]
        gradients = jax.grad(loss, argnums=(0, 1))
        for got, expected in zip(untransposed(gradients)(*args), gradients(*args), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TURNED)
def test_a_gradient_lies_as_its_weight_does(name):
    loss, *shapes = TURNED[name]
    args, gradient = drawn(*shapes), jax.grad(loss)
    products, transposes = products_and_transposes(gradient, *args)
    assert transposes > 0
    assert products_and_transposes(untransposed(gradient), *args) == (products, 0)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_what_has_nothing_to_gain_stays(name):
    loss, *shapes = AS_THEY_ARE[name]
    args, gradient = drawn(*shapes), jax.grad(loss)
    before = jax.make_jaxpr(gradient)(*args)
    assert str(jax.make_jaxpr(untransposed(gradient))(*args)) == str(before)


def test_a_product_that_is_used_untransposed_too_stays():
    def function(x, w):
        y = x @ w
        return y, y.T

    args = drawn((WIDE, ROWS), (ROWS, NARROW))
    assert products_and_transposes(untransposed(function), *args) == (1, 1)
    for got, expected in zip(untransposed(function)(*args), function(*args), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_jaxprs_that_equations_share_stay_shared():
    inner = jax.jit(lambda x: jnp.sin(x) * 2)

    def function(x, w):
        return inner(inner(x)), (w.T @ x).T

    args = drawn((ROWS, NARROW), (ROWS, NARROW))
    assert products_and_transposes(untransposed(function), *args) < (
        products_and_transposes(function, *args)
    )
    jaxpr = jax.make_jaxpr(untransposed(function))(*args)
    held = [eqn.params["jaxpr"] for eqn in jaxpr.eqns if eqn.primitive.name == "jit"]
    assert len(held) == 2
    assert held[0] is held[1]


@pytest.mark.parametrize("mesh", ["data=1", "data=8"])
def test_a_step_differentiates_so(mesh):
    """The up-projection's gradient is (embed, ffn) as it leaves the product, as its weight is."""
    step = make_step(small_layout(DECODER, "data", mesh))
    _, width, inner = step.state.parameters["blocks/up"].shape
    made = {
        tuple(eqn.outvars[0].aval.shape)
        for eqn, _ in equations(step.traced.closed.jaxpr)
        if eqn.primitive is lax.dot_general_p
    }
    assert width != inner
    assert (width, inner) in made
    assert (inner, width) not in made
