"""A program in float64: what it repeats, reduces and scatters is as wide as what it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxpar
from jaxpar.inference.probe import widened
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


def _unmasked(x):
    """One minus a mask of whole numbers, which is a float32 that promotes to any other."""
    return (1.0 - (jnp.arange(6) % 2)) * x[:, 0] / 3


def _square(x):
    """A well-conditioned matrix of six rows."""
    return jnp.eye(6, dtype=x.dtype) * 4 + x @ x.T / 3


def _states(x):
    """A diagonal state-space layer in complex numbers, its decay learned (S5)."""
    decay = jnp.exp(lax.complex(-jnp.abs(x[0]), x[1]) * jnp.exp(x[2]))
    driven = jnp.einsum("n,tn->tn", (decay - 1) / lax.complex(x[0], x[1]), x + 0j)

    def after(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    _, states = lax.associative_scan(after, (jnp.broadcast_to(decay, driven.shape), driven))
    return 2 * (states * (1 + 2j)).real


def _filtered(x):
    """A convolution by Fourier transforms, and a recurrence in complex numbers."""
    once = jnp.fft.irfft(jnp.fft.rfft(x, axis=0) * (1 + 0.5j), n=6, axis=0)
    return lax.scan(lambda c, y: ((c * 0.5j + y), c.imag), 0j * x[0], once)[1]


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
        lambda x: jnp.linalg.solve(_square(x), x),
        lambda x: jnp.linalg.inv(_square(x) + 1j * _square(x)).imag,
        lambda x: jax.scipy.sparse.linalg.cg(lambda y: _square(x) @ y, x[:, 0], maxiter=3)[0],
        lambda x: jax.grad(lambda y: jnp.linalg.inv(_square(y)).sum())(x),
        lambda x: lax.composite(lambda y: jnp.tanh(y) / 3, "its.own")(x),
        _states,
        _filtered,
        _unmasked,
    ],
    ids=[
        *"set add subtract multiply max min gradient reduce reduce_window cumsum sort".split(),
        *"solve inverse iterations solve_gradient composite".split(),
        *"states filtered unmasked".split(),
    ],
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


def test_what_is_learned_is_wide_be_it_real_or_complex():
    """A complex number of two float32 would round what it is multiplied with."""

    class Turned(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones((1, 4)))
            self.turn = nnx.Param(jnp.ones((1, 4), "complex64"))

        def __call__(self, x):
            return jnp.abs(x * self.scale[...] * self.turn[...])

    batch = {"x": np.ones((2, 4), "float32")}
    model = jaxpar.model(Turned, lambda m, b: m(b["x"]).mean(), batch)
    with jax.enable_x64(True):
        learned = jax.tree.leaves(nnx.state(widened(model).build(nnx.Rngs(0)), nnx.Param))
    assert sorted(str(x.dtype) for x in learned) == ["complex128", "float64"]
