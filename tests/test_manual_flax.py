"""Manual mode on a plain flax.nnx transformer, which names no axis and knows nothing of jaxpar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from manual_laws import BOTH, assert_equals_one_device

V, D, S = 16, 8, 4


@pytest.fixture(autouse=True)
def in_float64():
    # Flax's norms promote to at least float32 by JAX's ordinary rules.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


class Net(nnx.Module):
    def __init__(self, rngs):
        wide = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": rngs}
        self.embed = nnx.Embed(V, D, **wide)
        self.norms = nnx.List([nnx.LayerNorm(D, **wide) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, D, use_bias=False, decode=False, **wide)
        self.up, self.down = nnx.Linear(D, 4 * D, **wide), nnx.Linear(4 * D, D, **wide)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        mask = nnx.make_causal_mask(tokens, dtype=bool)
        x = x + self.attention(self.norms[0](x), mask=mask)
        x = x + self.dropout(self.down(nnx.relu(self.up(self.norms[1](x)))))
        return self.embed.attend(x)


def spec_of(path, leaf):
    name = jax.tree_util.keystr(path)
    if "embed" in name:
        return P("model")
    if "up" in name:
        return P(*[None] * (leaf.ndim - 1), "model")
    if "down" in name and leaf.ndim == 2 or "'out'" in name:
        return P("model")
    return P(None, "model") if "attention" in name else P()


@pytest.mark.parametrize("stored", [False, True], ids=["data x tensor", "fsdp x tensor"])
def test_nnx_transformer_equals_one_device(stored):
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    rng = np.random.default_rng(0)
    # Biases start as zeros, which would hide a bias added once per device.
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)
    batch = {
        "tokens": jnp.asarray(rng.integers(0, V, (8, S))),
        "labels": jnp.asarray(rng.integers(0, V, (8, S))),
        "weight": jnp.arange(8.0) + 1,
    }

    def loss(params, rest, batch):
        logits = nnx.merge(graph, params, rest, copy=True)(batch["tokens"])
        logp = jax.nn.log_softmax(logits)
        lost = -jnp.take_along_axis(logp, batch["labels"][..., None], axis=-1)[..., 0].mean(-1)
        return (lost * batch["weight"]).sum() / batch["weight"].sum()

    use = jax.tree_util.tree_map_with_path(spec_of, params)
    specs = use
    if stored:
        # The last dim that is free and divides by the four devices along `data`.
        def cut(spec, leaf):
            entries = [*spec, *[None] * (leaf.ndim - len(spec))]
            for d in reversed(range(leaf.ndim)):
                if entries[d] is None and leaf.shape[d] % 4 == 0:
                    entries[d] = "data"
                    return P(*entries)
            return spec

        specs = jax.tree.map(cut, use, params, is_leaf=lambda node: isinstance(node, P))
    plan = assert_equals_one_device(
        loss,
        (params, rest, batch),
        specs=(specs, P(), P("data")),
        use_specs=(use, P(), P("data")),
        sizes=BOTH,
        # Flax takes attention's softmax in float32; measured 5e-8.
        bound=1e-6,
    )
    over_model = [c for c in plan.collectives if c.axes == ("model",)]
    assert {c.kind for c in over_model} == {"all-reduce"}
    assert [c.primitive for c in over_model].count("dot_general") == 2
