"""Attention that people write is found where it is attention, and nowhere else."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import cpu

import jaxpar
from jaxpar.attention import found, fused, record
from jaxpar.attention.written import fused_where_written
from jaxpar.jaxprs.float64 import evaluate_wide
from jaxpar.measures.verify.verify import verify
from jaxpar.step.make_step import make_step

ROWS, LENGTH, HEADS, WIDTH = 2, 12, 4, 8
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))

pytestmark = pytest.mark.usefixtures("ranks_promoted")


@pytest.fixture
def any_type(monkeypatch):
    """What cuDNN cannot compute for its type or its sizes counts as what it can."""
    monkeypatch.setattr(found, "unfit", lambda *about: None)


def weighed(scores, v):
    """The values of keys, weighed by the softmax of (row, head, query, key)."""
    return jnp.einsum("bnqk,bknh->bqnh", jax.nn.softmax(scores, -1), v)


def scores(q, k):
    return jnp.einsum("bqnh,bknh->bnqk", q, k) / q.shape[-1] ** 0.5


def grouped(q, k, v):
    return jax.nn.dot_product_attention(q, k[:, :, ::2], v[:, :, ::2], is_causal=True)


def by_hand(q, k, v):
    return weighed(jnp.where(CAUSAL, scores(q, k), -1e9), v)


def added(q, k, v):
    at = jnp.arange(LENGTH)
    return weighed(0.3 * scores(q, k) + jnp.where(at[:, None] >= at, 0.0, -1e30), v)


def heads_first(q, k, v):
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return (jax.nn.softmax(0.25 * (q @ k.swapaxes(-1, -2))) @ v).swapaxes(1, 2)


def heads_among_rows(q, k, v):
    q, k, v = (x.swapaxes(1, 2).reshape(-1, LENGTH, WIDTH) for x in (q, k, v))
    hidden = jnp.where(jnp.tri(LENGTH, dtype=bool), jnp.einsum("ntd,nsd->nts", q, k), -jnp.inf)
    y = jnp.einsum("nts,nsd->ntd", jax.nn.softmax(hidden), v)
    return y.reshape(ROWS, HEADS, LENGTH, WIDTH).swapaxes(1, 2)


def of_flax(module, q, k, v):
    mask = nn.make_causal_mask(jnp.ones((ROWS, LENGTH)))
    return module.dot_product_attention(q, k, v, mask=mask)


def in_layers(q, k, v):
    mask = nn.make_causal_mask(jnp.ones((ROWS, LENGTH)))

    def layer(x, _):
        return nn.dot_product_attention(x, k, v, mask=mask), None

    return jax.lax.scan(jax.checkpoint(layer), q, None, length=2)[0]


def of_others(q, k, v):
    return jax.nn.dot_product_attention(q, k[:, :5], v[:, :5])


FOUND = {
    "jax.nn, causal and grouped": (grouped, True),
    "jax.nn": (jax.nn.dot_product_attention, False),
    "jax.nn, keys of another length": (of_others, False),
    "flax.nnx": (partial(of_flax, nnx), True),
    "flax.linen": (partial(of_flax, nn), True),
    "by hand": (by_hand, True),
    "a mask that is added": (added, True),
    "heads before positions": (heads_first, False),
    "heads among rows": (heads_among_rows, True),
    "in layers that are computed again": (in_layers, True),
}


def drawn(dtype="float64"):
    draws = np.random.default_rng(0)
    shape = (ROWS, LENGTH, HEADS, WIDTH)
    return [jnp.asarray(draws.standard_normal(shape), dtype) for _ in range(3)]


def calls(closed) -> list[str]:
    """What is asked of the hook in a jaxpr, in its text."""
    return [part.split("]")[0] for part in str(closed).split("attend[")[1:]]


@pytest.mark.parametrize(("attend", "causal"), FOUND.values(), ids=FOUND)
def test_attention_is_found_and_stays_what_it_computes(attend, causal, any_type):
    """With its gradient, in float64, whatever types it was written in."""
    closed = jax.make_jaxpr(attend)(*drawn("float32"))
    said = fused_where_written(closed)
    assert [f"causal={causal}" in call for call in calls(said)] == [True]
    with jax.enable_x64(True):
        operands = drawn()

        @partial(jax.jit, static_argnums=0)
        def both(which, *operands):
            y, back = jax.vjp(lambda *x: evaluate_wide(which.jaxpr, which.consts, x)[0], *operands)
            return y, *back(jnp.cos(y))

        for ours, theirs in zip(both(said, *operands), both(closed, *operands), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def in_a_window(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=(3, 0))


def backwards(q, k, v):
    return weighed(jnp.where(CAUSAL.T, scores(q, k), -1e9), v)


def but_for_one_pair(q, k, v):
    mask = CAUSAL.copy()
    mask[7, 3] = False
    return weighed(jnp.where(mask, scores(q, k), -1e9), v)


OTHERS = {
    "a window": in_a_window,
    "the future": backwards,
    "a pair that is hidden": but_for_one_pair,
    "a mask that comes with the batch": lambda q, k, v: weighed(
        jnp.where(q[:, :, :1, 0].swapaxes(1, 2)[:, None] > 0, scores(q, k), -1e9), v
    ),
    "a mask that weighs": lambda q, k, v: weighed(jnp.where(CAUSAL, scores(q, k), -3.0), v),
    "a mask that is scaled away": lambda q, k, v: weighed(
        jnp.where(CAUSAL, scores(q, k), -1e9) * 1e-9, v
    ),
    "a bias": lambda q, k, v: weighed(scores(q, k) + jnp.linspace(0, 1, LENGTH), v),
    "a cap on scores": lambda q, k, v: weighed(jnp.tanh(scores(q, k)), v),
    "a temperature that is learned": lambda q, k, v: weighed(scores(q, k) * q[0, 0, 0, 0], v),
    "weights that are read": lambda q, k, v: (
        (w := jax.nn.softmax(scores(q, k))).sum() + jnp.einsum("bnqk,bknh->bqnh", w, v)
    ),
    "weights that are dropped": lambda q, k, v: jnp.einsum(
        "bnqk,bknh->bqnh", jax.nn.softmax(scores(q, k)) * (q[:, :, :, :1].swapaxes(1, 2) > 0), v
    ),
    "a softmax over queries": lambda q, k, v: jnp.einsum(
        "bnqk,bknh->bqnh", jax.nn.softmax(scores(q, k), axis=2), v
    ),
    "a product without softmax": lambda q, k, v: jnp.einsum("bnqk,bknh->bqnh", scores(q, k), v),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_another_function_stays_as_it_is(other, any_type):
    closed = jax.make_jaxpr(other)(*drawn("float32"))
    assert fused_where_written(closed) is closed


def test_what_cudnn_cannot_take_stays_as_it_is():
    """By its type: float32 here."""
    closed = jax.make_jaxpr(grouped)(*drawn("float32"))
    assert fused_where_written(closed) is closed


class Block(nnx.Module):
    """Flax's own attention layer, causal, with a residual."""

    def __init__(self, dtype, rngs: nnx.Rngs):
        sizes = {"num_heads": HEADS, "in_features": 32, "decode": False, "dtype": dtype}
        self.attention = nnx.MultiHeadAttention(**sizes, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        return x + self.attention(x, mask=mask)


def own_model(dtype=None, net=None):
    """A network, of two of them if none is given, as a person has it."""

    def loss(net, batch):
        x = batch["x"].astype(dtype or jnp.float32)
        return jnp.mean((net(x).astype(jnp.float32) - batch["y"]) ** 2)

    draws = np.random.default_rng(0)
    shape = (8, LENGTH, 32)
    batch = {name: draws.standard_normal(shape).astype("float32") for name in "xy"}
    rngs = nnx.Rngs(0)
    net = net or nnx.Sequential(*(Block(dtype, rngs) for _ in range(2)))
    return jaxpar.model(net, loss, batch)


@pytest.mark.parametrize("mode", ["auto", "manual", "explicit"])
def test_a_plain_model_is_fused_and_stays_itself_on_one_device(mode, any_type, monkeypatch):
    """In float64; its heads over model beside rows over data."""
    for module in (record, fused):
        monkeypatch.setattr(module, "suits", lambda q, v, implementation: True)
    layout = jaxpar.lay_out(own_model(), strategy="hybrid", mesh="data=2,model=2")
    make = partial(make_step, mode=mode)
    assert str(make(layout).traced.closed).count(fused.FUSED) >= 2
    verdict = verify(layout, hardware=cpu(), make=make, steps=1)
    assert verdict.ok and verdict.dtype == "float64", verdict.likely_mistake


class LinenBlock(nn.Module):
    """The same as Flax Linen has it."""

    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        return x + nn.MultiHeadDotProductAttention(HEADS, dtype=jnp.bfloat16)(x, mask=mask)


@pytest.mark.parametrize("net", [None, nn.remat(LinenBlock)()], ids=["nnx", "linen"])
def test_in_bfloat16_a_plain_model_is_fused_as_it_is(net):
    """In NNX, in Linen, computed again in backward; dims named or not."""
    layout = jaxpar.lay_out(own_model(jnp.bfloat16, net), strategy="hybrid", mesh="data=2,model=2")
    assert fused.FUSED in str(make_step(layout).traced.closed)


def test_in_float32_it_stays_as_it_is_written():
    layout = jaxpar.lay_out(own_model(), strategy="data", mesh="data=2")
    assert fused.FUSED not in str(make_step(layout).traced.closed)
