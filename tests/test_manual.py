"""Manual mode on small functions: loss and every gradient are those of one device.

All in float64, with uneven weights per example: with even ones a mean of means would pass.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from manual_laws import BOTH, DATA, TENSOR, assert_equals_one_device, normal

from jaxpar.manual import ManualError, trace


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def mlp_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"][None])
    out = hidden @ params["w2"] + params["b2"][None]
    logp = jax.nn.log_softmax(out)
    loss = -jnp.take_along_axis(logp, batch["y"][:, None], axis=-1)[:, 0]
    return (batch["weight"] * loss).sum() / batch["weight"].sum()


def mlp_args():
    params = {
        "w1": normal(0, 6, 16),
        "b1": normal(1, 16),
        "w2": normal(2, 16, 8),
        "b2": normal(3, 8),
    }
    batch = {"x": normal(4, 8, 6), "y": jnp.arange(8) * 3 % 8, "weight": jnp.arange(8.0) + 1}
    return params, batch


MLP_TENSOR = {"w1": P(None, "model"), "b1": P("model"), "w2": P("model"), "b2": P()}
MLP_FSDP = {"w1": P(None, "data"), "b1": P("data"), "w2": P("data"), "b2": P("data")}
MLP_FSDP_TENSOR = {
    "w1": P(None, ("model", "data")),
    "b1": P(("model", "data")),
    "w2": P("model", "data"),
    "b2": P("data"),
}


@pytest.mark.parametrize(
    ("specs", "use", "sizes"),
    [
        pytest.param(P(), None, DATA, id="data"),
        pytest.param(MLP_TENSOR, None, TENSOR, id="tensor"),
        pytest.param(MLP_TENSOR, None, BOTH, id="data x tensor"),
        pytest.param(MLP_FSDP, P(), DATA, id="fsdp"),
        pytest.param(MLP_FSDP_TENSOR, MLP_TENSOR, BOTH, id="fsdp x tensor"),
        pytest.param({**MLP_TENSOR, "b1": P(), "b2": P("model")}, None, BOTH, id="odd biases"),
        pytest.param({**MLP_TENSOR, "w2": P(None, "model")}, None, BOTH, id="classes split"),
        pytest.param(MLP_FSDP, None, DATA, id="weights split in use"),
    ],
)
def test_mlp_equals_one_device(specs, use, sizes):
    batch = P("data") if "data" in sizes else P()
    assert_equals_one_device(
        mlp_loss,
        mlp_args(),
        specs=(specs, batch),
        use_specs=None if use is None else (use, batch),
        sizes=sizes,
    )


def test_relu_keeps_its_own_slope_at_zero():
    """An inlined relu would have slope 1/2 at 0; digits on a black ground meet 0 all the time."""

    def loss(w, x):
        return (jax.nn.relu(x @ w) * jnp.arange(1.0, 9.0)[None]).sum() + (w**2).sum()

    w, x = jnp.zeros((4, 8)) + 1e-3 * jnp.eye(4, 8), normal(0, 8, 4)
    x = x.at[:, 2:].set(0.0)
    assert_equals_one_device(loss, (w, x), specs=(P(None, "model"), P("data")), sizes=BOTH)
