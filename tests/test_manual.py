"""Manual mode on small functions: loss and every gradient are those of one device.

All in float64, with uneven weights per example: with even ones a mean of means would pass.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from manual_laws import (
    BOTH,
    DATA,
    TENSOR,
    assert_equals_one_device,
    count_collectives,
    manual_step,
    normal,
)

from jaxpar.spmd import ManualError, trace

pytestmark = pytest.mark.usefixtures("ranks_promoted")


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


# --- other shapes of network ------------------------------------------------------------------


def test_layer_norm_with_bias_on_a_split_width_equals_one_device():
    def loss(params, x):
        x = x + params["shift"][None]
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * params["scale"][None] + params["bias"][None]
        return (jax.nn.gelu(x) * jnp.arange(1.0, 9.0)[None]).sum()

    params = {"shift": normal(0, 8), "scale": 1 + normal(1, 8), "bias": normal(2, 8)}
    specs = {"shift": P("model"), "scale": P("model"), "bias": P()}
    assert_equals_one_device(loss, (params, normal(3, 8, 8)), specs=(specs, P("data")), sizes=BOTH)


def test_convnet_with_batch_statistics_equals_one_device():
    """Mean and variance are of the whole batch, though each device holds a part of it."""

    def loss(params, images):
        x = jax.lax.conv_general_dilated(
            images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
        x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-3) * params["scale"][None, None, None])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return (x.reshape(x.shape[0], -1) @ params["out"]).var()

    params = {"kernel": normal(0, 3, 3, 2, 4), "scale": 1 + normal(1, 4), "out": normal(2, 16, 3)}
    images = normal(3, 8, 4, 4, 2)
    split = {"kernel": P(None, None, None, "model"), "scale": P("model"), "out": P()}
    stored = split | {"out": P("data")}
    assert_equals_one_device(
        loss, (params, images), specs=(stored, P("data")), use_specs=(split, P("data")), sizes=BOTH
    )


def test_recurrent_weight_is_summed_once_after_all_turns():
    """A state that starts as zeros takes the batch's split, and the loop sends nothing."""

    def loss(w, x_BTD):
        def turn(h, x):
            return jnp.tanh(h @ w + x), None

        h, _ = jax.lax.scan(turn, jnp.zeros((8, 4)), x_BTD.swapaxes(0, 1))
        return (h**2).sum()

    args, how = (normal(0, 4, 4), normal(1, 8, 5, 4)), {"specs": (P(), P("data")), "sizes": DATA}
    assert_equals_one_device(loss, args, **how)
    counts, _ = count_collectives(manual_step(loss, args, **how)[0], args)
    assert counts == {("outside", "psum", ("data",)): 2}  # the loss and the weight's gradient


def test_count_along_a_split_dim_starts_at_the_shard():
    def loss(w, x):
        place = jax.lax.broadcasted_iota(x.dtype, (8, 8), 0) * 8.0
        return (
            jnp.sin(x @ w) * jax.lax.broadcasted_iota(x.dtype, (8, 8), 1) + place * (x @ w)
        ).sum()

    args, specs = (normal(0, 4, 8), normal(1, 8, 4)), (P(None, "model"), P("data"))
    assert_equals_one_device(loss, args, specs=specs, sizes=BOTH)


def test_lookup_outside_the_table_follows_its_mode_when_the_table_is_split():
    def loss(table, ids):
        filled = jnp.nan_to_num(jnp.take(table, ids, axis=0), nan=3.0)
        clipped = jnp.take(table, ids, axis=0, mode="clip")
        return (filled * clipped).sum()

    args = normal(0, 8, 4), jnp.array([0, 7, 8, 3, -1, 12, 4, -9])
    assert_equals_one_device(loss, args, specs=(P("model"), P("data")), sizes=BOTH)


def test_custom_backward_rule_is_kept():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    def backward(kept, g):  # not the true gradient, so that inlining the product would show
        x, w = kept
        return 2 * g @ w.T, 3 * x.T @ g / jnp.sqrt((g**2).sum())

    product.defvjp(lambda x, w: (x @ w, (x, w)), backward)

    def loss(params, x):
        return jnp.sin(product(product(x, params["a"]), params["b"])).sum()

    args = {"a": normal(0, 4, 8), "b": normal(1, 8, 4)}, normal(2, 8, 4)
    specs = {"a": P(None, "model"), "b": P("model")}, P("data")
    assert_equals_one_device(loss, args, specs=specs, sizes=BOTH)


def test_gathered_weights_used_apart_from_the_batch_count_once():
    """Weight decay sees a weight that every device gathered: equal, though its type may differ."""

    @jax.custom_vjp
    def scaled(w):
        return w * 1.0

    # Squared, so that a cotangent which is one device's part would not do.
    scaled.defvjp(lambda w: (w * 1.0, None), lambda _, g: (g * g,))

    def loss(params, x):
        return (
            (x @ params["a"]).var() + (params["a"] ** 2).sum() + jnp.sin(scaled(params["b"])).sum()
        )

    args = {"a": normal(0, 4, 8), "b": normal(1, 8, 2)}, normal(2, 8, 4)
    use = (P(), P("data"))
    for sizes in (DATA, BOTH):
        stored = {"a": P(None, "data"), "b": P("data")}
        assert_equals_one_device(loss, args, specs=(stored, P("data")), use_specs=use, sizes=sizes)


def test_bias_gradient_is_summed_at_the_size_of_the_bias():
    """A broadcast made before its shard is known would sum the global batch over devices."""

    def loss(bias, x):
        return jnp.sin(jnp.broadcast_to(bias[None], (32, 6)) * x).sum()

    args = normal(0, 6), normal(1, 32, 6)
    how = {"specs": (P(), P("data", "model")), "sizes": BOTH}
    assert_equals_one_device(loss, args, **how)
    jaxpr = jax.make_jaxpr(manual_step(loss, args, **how)[0])(*args)
    (inner,) = [e.params["jaxpr"] for e in jaxpr.eqns if e.primitive.name == "shard_map"]
    sums = [e for e in inner.eqns if e.primitive.name.startswith("psum")]
    assert len(sums) >= 2
    assert all(v.aval.size <= 6 for e in sums for v in e.invars)


def test_branches_and_greatest_values_equal_one_device():
    """A maximum with a gradient cannot use pmax alone, and gathers nothing all the same."""

    def loss(w, x):
        y = jax.lax.cond(x.sum() > 0, lambda v: v @ w, lambda v: jnp.zeros((8, 8)), x)
        return jnp.max(y, axis=1).sum() + y.min() + jnp.prod(y[:, :2], axis=0).sum()

    args = normal(0, 4, 8), jnp.abs(normal(1, 8, 4))
    plan = assert_equals_one_device(loss, args, specs=(P(None, "model"), P("data")), sizes=BOTH)
    kinds = {c.kind for c in plan.collectives if c.primitive == "reduce_max"}
    assert kinds == {"all-reduce"}


def test_bfloat16_compute_gathers_the_narrow_weight():
    """float32 weights used in bfloat16 travel as bfloat16: half the bytes."""

    def loss(params, x):
        h = jax.nn.relu(x.astype(jnp.bfloat16) @ params["w1"].astype(jnp.bfloat16))
        return (h @ params["w2"].astype(jnp.bfloat16)).astype(jnp.float32).sum()

    params = {"w1": normal(0, 8, 16).astype(jnp.float32), "w2": normal(1, 16, 8).astype("float32")}
    args = params, normal(2, 8, 8).astype(jnp.float32)
    # bfloat16 rounds at 2**-8, and the sums over devices are rounded once more.
    plan = assert_equals_one_device(
        loss, args, specs=(P("data"), P("data")), use_specs=(P(), P("data")), sizes=DATA, bound=2e-2
    )
    gathers = [c.bytes for c in plan.collectives if c.kind == "all-gather"]
    assert gathers == [8 * 16 * 2, 16 * 8 * 2]


def test_dropout_and_metrics_come_out_as_on_one_device():
    """Masks are the very masks of one device; a result is sharded as it comes or as asked."""

    def fn(w, x, key):
        logits = jnp.where(jax.random.bernoulli(key, 0.5, (8, 8)), x @ w, 0.0)
        return {"guess": logits.argmax(-1), "logits": logits}

    args = normal(0, 4, 8), normal(1, 8, 4), jax.random.key(1)
    specs = P(None, "model"), P("data"), P()
    plan = trace(fn, args, specs=specs, axis_sizes=BOTH)
    assert plan.out_specs == {"guess": P("data"), "logits": P("data", "model")}
    whole = trace(fn, args, specs=specs, axis_sizes=BOTH, out_specs={"guess": P(), "logits": P()})
    for this in (plan, whole):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        got = jax.shard_map(this, mesh=mesh, in_specs=this.in_specs, out_specs=this.out_specs)(
            *args
        )
        expected = fn(*args)
        assert (got["guess"] == expected["guess"]).all()
        assert jnp.abs(got["logits"] - expected["logits"]).max() < 1e-14


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (P("model"), r"dim 0 has size 3, and spec .* splits it over 2 devices"),
        (P(None, "pipe"), "names axis 'pipe', and the mesh has data, model"),
        (P(None, ("model", "model")), "uses an axis twice"),
        (P(None, None, None), "more entries than the 2 dims"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_with_its_argument(spec, sentence):
    with pytest.raises(ManualError, match=r"\[0\]\['w'\].*" + sentence):
        trace(lambda p: p["w"].sum(), ({"w": jnp.ones((3, 8))},), specs=(spec,), axis_sizes=BOTH)


def test_a_plan_called_with_whole_arrays_says_so():
    plan = trace(lambda x: x.sum(), (jnp.ones(8),), specs=(P("data"),), axis_sizes=BOTH)
    with pytest.raises(ManualError, match=r"shape \(8,\) came as \(8,\) where its shard is \(2,\)"):
        plan(jnp.ones(8))


def test_planning_needs_no_backend():
    code = (
        "import jax, jax.numpy as jnp; from jax.sharding import PartitionSpec as P\n"
        "from jaxpar.spmd import trace\n"
        "a = jax.ShapeDtypeStruct((8, 4), jnp.float32)\n"
        "f = lambda x, w: jax.lax.scan(lambda h, _: (jax.nn.relu(h @ w), None), x, length=2)[0]\n"
        "w = jax.ShapeDtypeStruct((4, 4), jnp.float32)\n"
        "plan = trace(f, (a, w), specs=(P('data'), P()), axis_sizes={'data': 4})\n"
        "assert plan.out_specs == P('data', None), plan.out_specs"
    )
    env = {**os.environ, "JAX_PLATFORMS": "nosuch"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
