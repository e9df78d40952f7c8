"""Laws of manual mode: loss and every gradient are those of one device, and the traffic is placed well.

All in float64, with uneven weights per example: with even ones a mean of means would pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxpar.manual import ManualError, trace

# Measured worst over all tests below: 3e-15 relative to the leaf's largest gradient.
BOUND = 1e-12

DATA = {"data": 8}
TENSOR = {"model": 2}
BOTH = {"data": 4, "model": 2}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def normal(seed, *shape, scale=0.5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale)


def run_manual(fn, args, *, specs, sizes, use_specs=None, text=False):
    """Loss and gradient of the first argument, by way of shard_map; and the plan."""
    plan = trace(fn, args, specs=specs, axis_sizes=sizes, use_specs=use_specs)
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )
    step = jax.jit(
        jax.shard_map(
            lambda *local: jax.value_and_grad(plan)(*local),
            mesh=mesh,
            in_specs=plan.in_specs,
            out_specs=(plan.out_specs, plan.in_specs[0]),
        )
    )
    compiled = step.lower(*args).compile()
    assert plan.out_specs == P()
    return (*compiled(*args), plan, compiled.as_text() if text else None)


def assert_equals_one_device(fn, args, *, bound=BOUND, **how):
    loss, grads, plan, text = run_manual(fn, args, **how)
    expected, expected_grads = jax.jit(jax.value_and_grad(fn))(*args)
    assert abs(loss - expected) <= bound * abs(expected)
    paths = jax.tree_util.tree_leaves_with_path(grads)
    assert len(paths) > 0
    for (path, got), want in zip(paths, jax.tree.leaves(expected_grads), strict=True):
        scale = float(jnp.abs(want).max())
        assert scale > 1e-6, f"{path}: a gradient of zero tests nothing"
        worst = float(jnp.abs(got - want).max())
        assert worst <= bound * scale, f"{jax.tree_util.keystr(path)}: off by {worst / scale:.1e}"
    return plan, text


# --- a multilayer perceptron ------------------------------------------------------------------


def mlp_loss(params, batch):
    hidden = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"])
    out = hidden @ params["w2"] + params["b2"]
    logp = jax.nn.log_softmax(out)
    loss = -jnp.take_along_axis(logp, batch["y"][:, None], axis=-1)[:, 0]
    return (batch["weight"] * loss).sum() / batch["weight"].sum()


def mlp_args():
    params = {
        "w1": normal(0, 6, 16), "b1": normal(1, 16), "w2": normal(2, 16, 8), "b2": normal(3, 8),
    }
    batch = {"x": normal(4, 8, 6), "y": jnp.arange(8) * 3 % 8, "weight": jnp.arange(8.0) + 1}
    return params, batch


MLP_TENSOR = {"w1": P(None, "model"), "b1": P("model"), "w2": P("model"), "b2": P()}
MLP_FSDP = {"w1": P(None, "data"), "b1": P("data"), "w2": P("data"), "b2": P("data")}
MLP_FSDP_TENSOR = {
    "w1": P(None, ("model", "data")), "b1": P(("model", "data")), "w2": P("model", "data"),
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
        return (jax.nn.relu(x @ w) * jnp.arange(1.0, 9.0)).sum() + (w**2).sum()

    w, x = jnp.zeros((4, 8)) + 1e-3 * jnp.eye(4, 8), normal(0, 8, 4)
    x = x.at[:, 2:].set(0.0)
    assert_equals_one_device(loss, (w, x), specs=(P(None, "model"), P("data")), sizes=BOTH)


# --- a decoder in plain jax.numpy -------------------------------------------------------------

V, D, K, G, H, F, L, B, S = 16, 8, 2, 2, 4, 16, 3, 8, 6


def decoder_params(*, tied=False):
    layers = {
        "norm1": 1 + normal(10, L, D), "norm2": 1 + normal(11, L, D),
        "q": normal(12, L, D, K, G, H), "k": normal(13, L, D, K, H), "v": normal(14, L, D, K, H),
        "o": normal(15, L, K, G, H, D),
        "gate": normal(16, L, D, F), "up": normal(17, L, D, F), "down": normal(18, L, F, D),
    }
    params = {"embed": normal(20, V, D), "layers": layers, "norm": 1 + normal(21, D)}
    return params if tied else params | {"head": normal(22, D, V)}


def decoder_batch():
    rng = np.random.default_rng(7)
    lengths = np.array([6, 1, 5, 2, 6, 3, 1, 4])
    return {
        "tokens": jnp.asarray(rng.integers(0, V, (B, S))),
        "labels": jnp.asarray(rng.integers(0, V, (B, S))),
        "real": jnp.asarray((np.arange(S) < lengths[:, None]) * 1.0),
    }


DECODER_TENSOR = {
    "embed": P("model"),
    "layers": {
        "norm1": P(), "norm2": P(),
        "q": P(None, None, "model"), "k": P(None, None, "model"), "v": P(None, None, "model"),
        "o": P(None, "model"),
        "gate": P(None, None, "model"), "up": P(None, None, "model"), "down": P(None, "model"),
    },
    "norm": P(),
    "head": P(None, "model"),
}


def stored_over(axis, use, params):
    """Each weight's spec with its last dim that divides cut further over `axis`."""
    def cut(spec, leaf):
        entries = [*spec, *(None,) * (leaf.ndim - len(spec))]
        entries = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]
        first = 0 if leaf.ndim < 2 or leaf.shape[0] != L else 1  # never the dim scanned over
        for d in reversed(range(first, leaf.ndim)):
            split = {(): 1, ("model",): 2}[entries[d]]
            if leaf.shape[d] % (4 * split) == 0:
                entries[d] = (*entries[d], axis)
                return P(*entries)
        return spec

    return jax.tree.map(cut, use, params, is_leaf=lambda node: isinstance(node, P))


def rms(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def rope(x_BSKH_):
    half = H // 2
    angle = jnp.arange(S)[:, None] / 10.0 ** (jnp.arange(half) / half)
    cos, sin = (f(angle)[:, *[None] * (x_BSKH_.ndim - 3), :] for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x_BSKH_, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def block(x_BSD, layer, key):
    h = rms(x_BSD, layer["norm1"])
    q = rope(jnp.einsum("bsd,dkgh->bskgh", h, layer["q"]))
    k = rope(jnp.einsum("bsd,dkh->bskh", h, layer["k"]))
    v = jnp.einsum("bsd,dkh->bskh", h, layer["v"])
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k) / H**0.5
    scores = jnp.where(jnp.tril(jnp.ones((S, S), bool)), scores, -1e30)
    out = jnp.einsum("bkgst,btkh->bskgh", jax.nn.softmax(scores), v)
    x_BSD = x_BSD + dropout(jnp.einsum("bskgh,kghd->bsd", out, layer["o"]), key, 0)
    h = rms(x_BSD, layer["norm2"])
    h = jax.nn.silu(h @ layer["gate"]) * dropout(h @ layer["up"], key, 1)
    return x_BSD + h @ layer["down"]


def dropout(x, key, site):
    if key is None:
        return x
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, site), 0.7, x.shape), x / 0.7, 0)


def decoder_loss(params, batch, *, remat=False, drop=False, gathered=False, unrolled=False):
    x = jnp.take(params["embed"], batch["tokens"], axis=0)

    def body(x, numbered):
        layer, number = numbered
        return block(x, layer, jax.random.fold_in(jax.random.key(3), number) if drop else None), None

    body = jax.checkpoint(body) if remat else body
    if unrolled:
        for i in range(L):
            x, _ = body(x, (jax.tree.map(lambda p, i=i: p[i], params["layers"]), i))
    else:
        x, _ = jax.lax.scan(body, x, (params["layers"], jnp.arange(L)))
    x = rms(x, params["norm"])
    logits = x @ params["head"] if "head" in params else x @ params["embed"].T
    if gathered:
        right = jnp.take_along_axis(logits, batch["labels"][..., None], axis=-1)[..., 0]
    else:
        right = (logits * jax.nn.one_hot(batch["labels"], V)).sum(-1)
    loss = jax.nn.logsumexp(logits, axis=-1) - right
    return (loss * batch["real"]).sum() / batch["real"].sum()


def decoder_layouts():
    everywhere = jax.tree.map(lambda _: P(), DECODER_TENSOR, is_leaf=lambda n: isinstance(n, P))
    return {
        "data": (everywhere, False, {"data": 4}),
        "tensor": (DECODER_TENSOR, False, TENSOR),
        "fsdp": (everywhere, True, {"data": 4}),
        "data x tensor": (DECODER_TENSOR, False, BOTH),
        "fsdp x tensor": (DECODER_TENSOR, True, BOTH),
    }


def check_decoder(layout, *, text=False, tied=False, **options):
    use, stored, sizes = decoder_layouts()[layout]
    params, batch = decoder_params(tied=tied), decoder_batch()
    if tied:
        use = {name: spec for name, spec in use.items() if name != "head"}
    specs = stored_over("data", use, params) if stored else use
    split = P("data") if "data" in sizes else P()
    return assert_equals_one_device(
        lambda p, b: decoder_loss(p, b, **options),
        (params, batch),
        specs=(specs, split),
        use_specs=(use, split),
        sizes=sizes,
        text=text,
    )


@pytest.mark.parametrize("layout", decoder_layouts())
def test_decoder_equals_one_device(layout):
    check_decoder(layout)


@pytest.mark.parametrize("layout", ["fsdp", "data x tensor", "fsdp x tensor"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"remat": True}, id="remat"),
        pytest.param({"drop": True, "remat": True}, id="dropout"),
        pytest.param({"gathered": True, "tied": True}, id="tied, labels looked up"),
        pytest.param({"unrolled": True}, id="unrolled"),
    ],
)
def test_decoder_variants_equal_one_device(layout, options):
    check_decoder(layout, **options)
