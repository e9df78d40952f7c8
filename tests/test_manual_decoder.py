"""Manual mode on a decoder: the numbers of one device, and the textbook's traffic in the textbook's place.

The model is plain jax.numpy: embedding, RMSNorm, rotary and grouped-query attention, gated MLP, scan
over stacked layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from manual_laws import BOTH, TENSOR, assert_equals_one_device, normal


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


V, D, K, G, H, F, L, B, S = 16, 8, 2, 2, 4, 16, 3, 8, 6


def decoder_params(*, tied=False):
    layers = {
        "norm1": 1 + normal(10, L, D),
        "norm2": 1 + normal(11, L, D),
        "q": normal(12, L, D, K, G, H),
        "k": normal(13, L, D, K, H),
        "v": normal(14, L, D, K, H),
        "o": normal(15, L, K, G, H, D),
        "gate": normal(16, L, D, F),
        "up": normal(17, L, D, F),
        "down": normal(18, L, F, D),
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
        "norm1": P(),
        "norm2": P(),
        "q": P(None, None, "model"),
        "k": P(None, None, "model"),
        "v": P(None, None, "model"),
        "o": P(None, "model"),
        "gate": P(None, None, "model"),
        "up": P(None, None, "model"),
        "down": P(None, "model"),
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
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale[None, None]


def rope(x_BSKH_):
    half = H // 2
    angle = jnp.arange(1.0 * S)[:, None] / 10.0 ** (jnp.arange(1.0 * half) / half)[None]
    cos, sin = (f(angle)[None, :, *[None] * (x_BSKH_.ndim - 3), :] for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x_BSKH_, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def block(x_BSD, layer, key):
    h = rms(x_BSD, layer["norm1"])
    q = rope(jnp.einsum("bsd,dkgh->bskgh", h, layer["q"]))
    k = rope(jnp.einsum("bsd,dkh->bskh", h, layer["k"]))
    v = jnp.einsum("bsd,dkh->bskh", h, layer["v"])
    scores = jnp.einsum("bskgh,btkh->bkgst", q, k) / H**0.5
    scores = jnp.where(jnp.tril(jnp.ones((S, S), bool))[None, None, None], scores, -1e30)
    out = jnp.einsum("bkgst,btkh->bskgh", jax.nn.softmax(scores), v)
    x_BSD = x_BSD + dropout(jnp.einsum("bskgh,kghd->bsd", out, layer["o"]), key, 0)
    h = rms(x_BSD, layer["norm2"])
    h = jax.nn.silu(h @ layer["gate"]) * dropout(h @ layer["up"], key, 1)
    return x_BSD + h @ layer["down"]


def dropout(x, key, site):
    if key is None:
        return x
    return jnp.where(
        jax.random.bernoulli(jax.random.fold_in(key, site), 0.7, x.shape), x / 0.7, 0.0
    )


def decoder_loss(params, batch, *, remat=False, drop=False, gathered=False, unrolled=False):
    x = jnp.take(params["embed"], batch["tokens"], axis=0)

    def body(x, numbered):
        layer, number = numbered
        return block(
            x, layer, jax.random.fold_in(jax.random.key(3), number) if drop else None
        ), None

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
