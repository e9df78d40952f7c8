"""Manual mode on a decoder: the numbers of one device, the textbook's traffic in its places.

The model is plain jax.numpy: embedding, RMSNorm, rotary and grouped-query attention, gated MLP,
scan over stacked layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from manual_laws import (
    BOTH,
    TENSOR,
    assert_equals_one_device,
    count_collectives,
    manual_step,
    normal,
)


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
    """Each weight's spec with its last dim that divides sharded further over `axis`."""

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


def planned(layout, *, tied=False, **options):
    """The loss, its arguments and how they are placed."""
    use, stored, sizes = decoder_layouts()[layout]
    params, batch = decoder_params(tied=tied), decoder_batch()
    if tied:
        use = {name: spec for name, spec in use.items() if name != "head"}
    specs = stored_over("data", use, params) if stored else use
    split = P("data") if "data" in sizes else P()
    how = {"specs": (specs, split), "use_specs": (use, split), "sizes": sizes}
    return lambda p, b: decoder_loss(p, b, **options), (params, batch), how


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        pytest.param("data x tensor", {"remat": True}, id="remat"),
        pytest.param("fsdp x tensor", {"remat": True, "drop": True}, id="remat and dropout"),
        pytest.param("fsdp", {"drop": True}, id="dropout"),
        pytest.param("tensor", {}, id="plain"),
        pytest.param(
            "fsdp x tensor", {"gathered": True, "tied": True}, id="tied, labels looked up"
        ),
        pytest.param("fsdp x tensor", {"unrolled": True}, id="unrolled"),
    ],
)
def test_decoder_variants_equal_one_device(layout, options):
    loss, args, how = planned(layout, **options)
    assert_equals_one_device(loss, args, **how)


# --- communication, read from the jaxpr of loss and gradient ---------------------------


def traffic(layout, **options):
    """The plan, the collectives of the whole step, and the shapes that loops hand on."""
    loss, args, how = planned(layout, **options)
    step, plan = manual_step(loss, args, **how)
    return plan, *count_collectives(step, args)


def test_tensor_sums_twice_a_block_each_way_and_gathers_nothing():
    """Megatron: one all-reduce after attention, one after the MLP, and their mirror images."""
    plan, counts, _ = traffic("tensor")
    assert counts["forward loop", "psum", ("model",)] == 2
    assert counts["backward loop", "psum", ("model",)] == 2
    assert not [key for key in counts if key[1] in ("all_gather", "reduce_scatter")]
    in_loop = [c for c in plan.collectives if c.looped]
    assert [(c.kind, c.axes, c.primitive, c.times) for c in in_loop] == [
        ("all-reduce", ("model",), "dot_general", L)
    ] * 2
    assert all(c.source.split(":")[0].endswith("test_manual_decoder.py") for c in in_loop)


def test_data_sends_nothing_in_the_forward_loop_and_each_gradient_once():
    plan, counts, _ = traffic("data")
    assert not [c for c in plan.collectives if c.looped]
    assert counts["backward loop", "psum", ("data",)] == 9  # one for each of a layer's weights
    # Embedding, last norm and head; and the loss's numerator and denominator.
    assert counts["outside", "psum", ("data",)] == 3 + 2


@pytest.mark.parametrize("options", [{}, {"remat": True}], ids=["plain", "remat"])
def test_fsdp_gathers_a_layer_at_a_time_twice_and_scatters_its_gradient(options):
    plan, counts, stacked = traffic("fsdp", **options)
    assert counts["forward loop", "all_gather", ("data",)] == 9
    assert counts["backward loop", "all_gather", ("data",)] == 9
    assert counts["backward loop", "reduce_scatter", ("data",)] == 9
    assert counts["outside", "all_gather", ("data",)] <= 2 * 3
    assert counts["outside", "reduce_scatter", ("data",)] == 3
    # No loop hands on a whole weight: neither a gathered one saved, nor a gradient.
    assert len(stacked) > 9
    assert not {(L, D, F), (L, F, D), (L, D, K, G, H), (L, K, G, H, D), (L, D, K, H)} & set(stacked)
    assert {c.times for c in plan.collectives if c.kind == "all-gather"} == {1, L}


def test_a_gather_outside_the_loop_leaves_the_remat_inside_alone():
    """Embedding and head are gathered outside the layers' loop; a layer's own remat still decides.

    A checkpoint around the whole program, there to gather embedding and head again, once made every
    inner remat keep everything (an 8B decoder took 265 GB instead of 14).
    """
    kept, again = (
        str(jax.make_jaxpr(manual_step(loss, args, **how)[0])(*args)).count("psum")
        for loss, args, how in (planned("fsdp x tensor"), planned("fsdp x tensor", remat=True))
    )
    assert again > kept
