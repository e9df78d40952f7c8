"""Picks by comparing are the picks by index that they replace, and leave everything else alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxpr_as_fun

from jaxpar.jaxprs.compared import compared_where_picked

SCORES = np.array(np.random.default_rng(0).normal(size=(3, 4, 5)), np.float32)
SCORES[0, 0, 2] = -np.inf


def at(dim, low=0):
    """An index for each place along all dims but one, from `low` up to one past the end."""
    shape = [1 if d == dim else n for d, n in enumerate(SCORES.shape)]
    return np.random.default_rng(1).integers(low, SCORES.shape[dim] + 1, shape)


@pytest.mark.parametrize("mode", ["fill", "clip", "promise_in_bounds"])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_pick_is_the_same_by_comparing(mode, dim, wrap):
    """Values bit by bit, gradients too, out of bounds as well, whichever way JAX treats that."""
    places = at(dim, low=-2) if mode != "promise_in_bounds" else at(dim) % SCORES.shape[dim]

    def pick(x):
        found = jnp.take_along_axis(x, places, axis=dim, mode=mode)
        return jnp.squeeze(found, dim) if wrap else found

    traced = jax.make_jaxpr(pick)(SCORES)
    compared = compared_where_picked(traced)
    assert "gather" in str(traced) and "gather" not in str(compared)
    np.testing.assert_array_equal(jaxpr_as_fun(compared)(SCORES)[0], pick(SCORES))

    def gradient(function):
        return jax.vjp(function, SCORES)[1](jnp.ones_like(pick(SCORES)))[0]

    np.testing.assert_array_equal(gradient(lambda x: jaxpr_as_fun(compared)(x)[0]), gradient(pick))


def test_a_score_that_is_infinite_elsewhere_changes_nothing():
    """Cross entropy as optax has it, of scores of which one class is ruled out."""
    labels = np.array([[0, 1, 3, 4]] * 3)

    def loss(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, labels).sum()

    compared = jaxpr_as_fun(compared_where_picked(jax.make_jaxpr(loss)(SCORES)))
    ours, theirs = (
        jax.value_and_grad(lambda x: compared(x)[0])(SCORES),
        jax.value_and_grad(loss)(SCORES),
    )
    assert np.isfinite(theirs[0])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.take_along_axis(x, np.zeros((3, 4, 2), int), axis=2),  # several
        lambda x: jnp.take_along_axis(x, np.zeros((3, 1, 1), int), axis=1),  # rows
        lambda x: x[np.array([0, 2])],  # lookups
        lambda x: jnp.take_along_axis(
            x.astype(int), np.zeros((3, 4, 1), int), axis=2
        ),  # not floats
        lambda x: jnp.take_along_axis(x[:, :, :1], np.zeros((3, 4, 1), int), axis=2),  # of one
    ],
)
def test_what_is_no_pick_stays_as_it_is(function):
    """The jaxpr itself is returned."""
    traced = jax.make_jaxpr(function)(np.zeros_like(SCORES))
    assert compared_where_picked(traced) is traced
