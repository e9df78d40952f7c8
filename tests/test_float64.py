"""A program in float64: what it repeats, reduces and scatters is as wide as what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxpar.jaxprs.float64 import evaluate_wide

AT = jnp.array([0, 2, 2])


def _pairs(x):
    """A reduction of two arrays by a function that no primitive of its own has."""
    start = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    return lax.reduce((x, x), start, lambda a, b: (a[0] + b[1], a[1] * b[0]), (0,))


def _windows(x):
    """Windows of a function that no primitive of its own has."""
    start = jnp.zeros((), x.dtype)
    return lax.reduce_window(x, start, lambda a, b: a + 2 * b, (2, 1), (1, 1), "VALID")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.at[AT].set(x[:3] / 3),
        lambda x: x.at[AT].add(x[:3] / 3),
        lambda x: x.at[AT].subtract(x[:3] / 3),
        lambda x: x.at[AT].multiply(x[:3] / 3),
        lambda x: x.at[AT].max(x[:3] / 3),
        lambda x: x.at[AT].min(x[:3] / 3),
        lambda x: jax.grad(lambda y: (y.at[AT].add(y[:3] ** 2 / 3) ** 3).sum())(x),
        _pairs,
        _windows,
        lambda x: jnp.cumsum(x / 3, axis=0),
        lambda x: jnp.sort(x / 3, axis=0),
    ],
    ids="set add subtract multiply max min gradient reduce reduce_window cumsum sort".split(),
)
def test_what_was_traced_in_float32_is_computed_in_float64(function):
    """The same digits as the function itself gives when it is traced in float64."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    x[2] = x[1]  # two rows of one place are then equal, so that the order of writing is no matter
    traced = jax.make_jaxpr(function)(x.astype("float32"))
    with jax.enable_x64(True):
        got = evaluate_wide(traced.jaxpr, traced.consts, [jnp.asarray(x)])
        want = jax.tree.leaves(function(jnp.asarray(x)))
        for g, w in zip(got, want, strict=True):
            assert g.dtype == "float64"
            np.testing.assert_allclose(g, w, rtol=1e-12, atol=1e-14)
