"""Rules that were held against Shardy's: right numbers on shards, and nothing is gathered."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P
from manual_laws import BOTH, DATA, assert_equals_one_device, normal

pytestmark = pytest.mark.usefixtures("ranks_promoted")


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def weighted(y):
    """A number to which each element of `y` contributes another share."""
    return (jnp.sin(y) * jnp.arange(1.0, y.size + 1).reshape(y.shape)).sum()


def tangled(w):
    """8 rows of 12 to 12 of 8: a quarter of the one is a quarter of the other."""
    return weighted(w.reshape(12, 8))


def in_another_order(w):
    return weighted(lax.reshape(w, (24, 4), (2, 0, 1)))


def cut(table, starts):
    """Of two rows from each start all 8 columns, wherever their start is said to be."""
    return jax.vmap(lambda s: lax.dynamic_slice(table, (s, s), (2, 8)))(starts)


def slices_as_wide_as_the_array(w, starts):
    return weighted(cut(w, starts))


def updates_as_wide_as_the_array(w, starts):
    return weighted(jax.grad(lambda w: jnp.sin(cut(w, starts)).sum())(w))


def pooled(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID")


def gradient_of_maxima(w, x):
    return weighted(jax.grad(lambda y: weighted(pooled(y)))(x * w))


def derivative_of_maxima(w, x):
    return weighted(jax.jvp(pooled, (x,), (x * w,))[1])


def ragged_gradients(w, x, sizes):
    def loss(w, x):
        return weighted(lax.ragged_dot(x, w, sizes))

    by_w, by_x = map(lax.stop_gradient, jax.grad(loss, (0, 1))(w, x))  # JAX has no second one
    return weighted(by_w * w) + weighted(by_x) * w.sum()


def ragged_batches(w, x, sizes):
    """Each example has sizes of groups of its own."""
    numbers = lax.RaggedDotDimensionNumbers((((2,), (2,)), ((0,), (1,))), (1,), (0,))
    return weighted(lax.ragged_dot_general(x, w, sizes, numbers))


def scattered_extremes(w, x, rows):
    highest = jnp.full((5, 8), -9.0).at[rows].max(lax.stop_gradient(x))
    lowest = jnp.full((5, 8), 9.0).at[rows].min(lax.stop_gradient(x))
    return weighted(highest * w) + weighted(lowest * w)


def greatest_about(w, x):
    values, places = lax.approx_max_k(lax.stop_gradient(x), 2, reduction_dimension=1)
    return weighted(values * w) + weighted(places * w)


def gradient_of_tanh(w, x):
    """JAX 0.11 has a primitive for what is in it."""
    return weighted(jax.grad(lambda y: jnp.tanh(y).sum())(x * w)) + weighted(jnp.log2(w * w))


def tridiagonal(w, x):
    return weighted(lax.linalg.tridiagonal_solve(x, 4 + w, x, jnp.stack([w, x], -1)))


def extremes_of_equals(w, x):
    """Several are the largest of a row, on one shard or on both; the gradient is shared equally."""
    largest, smallest = jnp.max(w, axis=1), jnp.min(w * x, axis=(1, 2))
    return weighted(largest) + weighted(smallest) + jnp.max(w) * jnp.min(x)


def derivative_of_extremes(w, x):
    return weighted(jax.jvp(lambda y: jnp.max(y * x, axis=2) ** 2, (w,), (jnp.cos(w),))[1])


def among_infinities(w, x):
    """Of what a mask leaves, and of a row that it leaves nothing of."""
    left = jnp.where(x > 0, w, -jnp.inf)
    return weighted(jnp.exp(jnp.max(left, axis=2))) + w.sum()


COLUMNS = P(None, "model")
LAST = P(None, None, "model")
ROWS = P("data")


CASES = {
    tangled: lambda: ([normal(0, 8, 12)], [ROWS], {"data": 4}),
    in_another_order: lambda: ([normal(0, 3, 4, 8)], [P(None, None, "data")], DATA),
    slices_as_wide_as_the_array: lambda: (
        [normal(0, 6, 8), jnp.arange(8) % 5],
        [COLUMNS, ROWS],
        BOTH,
    ),
    updates_as_wide_as_the_array: lambda: ([normal(0, 6, 8), jnp.arange(3)], [COLUMNS, P()], BOTH),
    gradient_of_maxima: lambda: (
        [normal(0, 8), normal(1, 8, 6, 8)],
        [P("model"), P("data", None, "model")],
        BOTH,
    ),
    derivative_of_maxima: lambda: (
        [normal(0, 8), normal(1, 8, 6, 8)],
        [P("model"), P("data", None, "model")],
        BOTH,
    ),
    ragged_gradients: lambda: (
        [normal(0, 3, 4, 8), normal(1, 6, 4), jnp.array([1, 3, 2])],
        [LAST, P(), P()],
        BOTH,
    ),
    ragged_batches: lambda: (
        [normal(0, 2, 8, 4, 6), normal(1, 8, 5, 4), jnp.arange(16).reshape(8, 2) % 3],
        [P(None, "data"), ROWS, ROWS],
        DATA,
    ),
    scattered_extremes: lambda: (
        [normal(0, 8), normal(1, 6, 8), jnp.array([0, 3, 3, 1, 0, 4])],
        [P("model"), COLUMNS, P()],
        BOTH,
    ),
    greatest_about: lambda: (
        [normal(0, 8), normal(1, 4, 6, 8)],
        [P("model"), P("data", None, "model")],
        BOTH,
    ),
    gradient_of_tanh: lambda: (
        [normal(0, 8), normal(1, 8, 8)],
        [P("model"), P("data", "model")],
        BOTH,
    ),
    extremes_of_equals: lambda: (
        [jnp.round(normal(0, 4, 8, 6)), jnp.round(normal(1, 4, 8, 6, scale=2))],
        [P("data", "model"), P("data", "model")],
        BOTH,
    ),
    derivative_of_extremes: lambda: (
        [jnp.round(normal(0, 4, 6, 8)), jnp.ones((4, 6, 8))],
        [P("data", None, "model"), P("data", None, "model")],
        BOTH,
    ),
    among_infinities: lambda: (
        [jnp.round(normal(0, 4, 3, 8)), jnp.sign(normal(1, 4, 3, 8)).at[0, 0].set(-1)],
        [P("data", None, "model"), P("data", None, "model")],
        BOTH,
    ),
    tridiagonal: lambda: ([normal(0, 8, 5), normal(1, 8, 5)], [ROWS, ROWS], DATA),
}
"""Of each loss its arguments, how they are sharded, and over what; made in float64."""


@pytest.mark.parametrize("loss", CASES, ids=lambda loss: loss.__name__)
def test_a_repaired_rule_equals_one_device_and_gathers_nothing(loss):
    args, specs, sizes = CASES[loss]()
    plan = assert_equals_one_device(loss, tuple(args), specs=tuple(specs), sizes=sizes)
    assert [c.reason for c in plan.collectives if c.kind != "all-reduce"] == []
