"""One matrix that makes several things: those that can be sharded are, the others stay whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxpar
from jaxpar.case import load_strategy

pytestmark = pytest.mark.usefixtures("ranks_promoted")

CPU = jaxpar.HARDWARE.load("cpu")()
BATCH = {"x": np.random.default_rng(0).standard_normal((4, 6, 16)).astype("float32")}


class Attention(nnx.Module):
    """Multi-query: 4 heads of queries, one of keys and values, from one matrix."""

    def __init__(self, rngs):
        self.qkv = nnx.Linear(16, 16 + 4 + 4, rngs=rngs)
        self.out = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(x), [16, 20], axis=-1)
        q = q.reshape(*x.shape[:2], 4, 4)
        p = jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k))
        return x + self.out(jnp.einsum("bhts,bsd->bthd", p, v).reshape(x.shape))


class Mamba2(nnx.Module):
    """A gate, values, what all heads share, and a rate for each of 4 heads, from one matrix."""

    def __init__(self, rngs):
        self.up = nnx.Linear(16, 2 * 32 + 2 * 4 + 4, use_bias=False, rngs=rngs)
        self.short = nnx.Conv(40, 40, (3,), feature_group_count=40, padding=((2, 0),), rngs=rngs)
        self.rate = nnx.Param(jnp.ones(4))
        self.out = nnx.Linear(32, 16, use_bias=False, rngs=rngs)

    def __call__(self, u):
        gate, values, step = jnp.split(self.up(u), [32, 72], axis=-1)
        x, b, c = jnp.split(jax.nn.silu(self.short(values)), [32, 36], axis=-1)
        x, step = x.reshape(*x.shape[:2], 4, 8), jax.nn.softplus(step)
        decay = jnp.exp(-step * jnp.exp(self.rate[...]))

        def turn(h, at):
            decay, x, b, c = at
            h = h * decay[..., None, None] + jnp.einsum("bhp,bn->bhpn", x, b)
            return h, jnp.einsum("bhpn,bn->bhp", h, c)

        over = [t.swapaxes(0, 1) for t in (decay, x * step[..., None], b, c)]
        _, y = lax.scan(turn, jnp.zeros((u.shape[0], 4, 8, 4)), over)
        return u + self.out(y.swapaxes(0, 1).reshape(gate.shape) * jax.nn.silu(gate))


class Joined(nnx.Module):
    """Attention and a gated feed-forward side by side, one matrix before and one after both."""

    def __init__(self, rngs):
        self.both = nnx.Linear(16, 3 * 16 + 2 * 32, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(16 + 32, 16, rngs=rngs)

    def __call__(self, x):
        *qkv, gate, up = jnp.split(self.both(x), [16, 32, 48, 80], axis=-1)
        q, k, v = (t.reshape(*x.shape[:2], 4, 4) for t in qkv)
        p = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
        mixed = jnp.einsum("bhts,bshd->bthd", p, v).reshape(x.shape)
        return x + self.out(jnp.concatenate([mixed, jax.nn.silu(gate) * up], axis=-1))


SPLIT = {
    Joined: {
        **{f"both/kernel/{k}": (None, "model") for k in range(5)},
        "out/kernel/0": ("model", None),
        "out/kernel/1": ("model", None),
        "out/bias": (None,),
    },
    Attention: {
        "qkv/kernel/0": (None, "model"),
        "qkv/kernel/1": (None, None),
        "qkv/bias/0": ("model",),
        "qkv/bias/1": (None,),
        "out/kernel": ("model", None),
    },
    Mamba2: {
        "up/kernel/0": (None, "model"),  # the gate
        "up/kernel/1": (None, "model"),  # the values
        "up/kernel/2": (None, None),  # what all heads share
        "up/kernel/3": (None, "model"),  # the rates
        "short/kernel/0": (None, None, "model"),
        "short/kernel/1": (None, None, None),
        "rate": ("model",),
        "out/kernel": ("model", None),
    },
}


@pytest.mark.parametrize("module", SPLIT)
def test_pieces_that_can_be_sharded_are_and_the_others_lie_together(module):
    model = jaxpar.model(module, lambda m, b: jnp.mean(m(b["x"]) ** 2), BATCH)
    mesh = jaxpar.MeshShape.parse("model=4")
    layout = jaxpar.lay_out(model, strategy=load_strategy("tensor"), mesh=mesh)
    specs = {path: tuple(a.stored) for path, a in layout.parameters.items()}
    assert {path: specs[path] for path in SPLIT[module]} == SPLIT[module]
    verdict = jaxpar.verify(layout, hardware=CPU, steps=1)
    assert verdict.ok and verdict.dtype == "float64", verdict.decisive


class Positions(nnx.Module):
    """A block of attention from one matrix, over a table of which the first positions are read."""

    def __init__(self, rngs):
        self.table = nnx.Param(jnp.ones((1, 8, 16)))
        self.block = Attention(rngs)

    def __call__(self, x):
        return self.block(x + self.table[:, : x.shape[1]])


class ClassToken(nnx.Module):
    """Attention of one token, joined to the others, whose keys and values are of one matrix."""

    def __init__(self, rngs):
        self.token = nnx.Param(jnp.ones((1, 1, 16)))
        self.q, self.kv = nnx.Linear(16, 16, rngs=rngs), nnx.Linear(16, 32, rngs=rngs)
        self.out = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        rows = x.shape[0]
        x = jnp.concatenate([jnp.broadcast_to(self.token[...], (rows, 1, 16)), x], axis=1)
        k, v = self.kv(x).reshape(rows, -1, 2, 4, 4).transpose(2, 0, 3, 1, 4)
        q = self.q(x[:, 0]).reshape(rows, 4, 1, 4)
        mixed = jax.nn.softmax(q @ k.swapaxes(-1, -2)) @ v
        return self.out(mixed.reshape(rows, 16))


class Tapped(nnx.Module):
    """A gate and what it gates from one matrix, through a filter whose taps are read one by one."""

    def __init__(self, rngs):
        self.up = nnx.Linear(16, 64, use_bias=False, rngs=rngs)
        self.taps = nnx.Param(jnp.ones((3, 64)))
        self.out = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        y = jnp.pad(self.up(x), ((0, 0), (2, 0), (0, 0)))
        y = sum(self.taps[j] * y[:, j : j + x.shape[1]] for j in range(3))
        gate, values = jnp.split(y, 2, axis=-1)
        return self.out(jax.nn.silu(gate) * values)


def test_a_filter_is_cut_by_channels_where_its_taps_are_read_one_by_one():
    model = jaxpar.model(Tapped, lambda m, b: jnp.mean(m(b["x"]) ** 2), BATCH)
    assert {model.dims[f"taps/{k}"][1] for k in (0, 1)} == {"ffn"} == {model.dims["out/kernel"][0]}


def test_a_product_is_cut_as_its_matrix_is_and_not_as_its_rows():
    """The rows are in pieces too: a token and the others, joined and cut again."""
    model = jaxpar.model(ClassToken, lambda m, b: jnp.mean(m(b["x"]) ** 2), BATCH)
    assert model.dims["kv/kernel/1"][1] == model.dims["out/kernel"][0] == "heads*head_dim_1"


def test_a_cut_that_is_good_for_nothing_spoils_no_other():
    def shifted(m, batch):  # the next one from each, so that all is cut along the sequence too
        return jnp.mean((m(batch["x"])[:, :-1] - batch["x"][:, 1:]) ** 2)

    model = jaxpar.model(Positions, shifted, BATCH)
    assert model.dims["table"][1] != "one" and "block/qkv/kernel/0" in model.dims
