"""An encoder and a decoder with cross attention, over padded sequences."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxpar


class Layer(nnx.Module):
    def __init__(self, width, heads, hidden, *, cross, rngs):
        def attention():
            return nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)

        self.own, self.norm1 = attention(), nnx.LayerNorm(width, rngs=rngs)
        self.cross = attention() if cross else None
        self.norm2 = nnx.LayerNorm(width, rngs=rngs) if cross else None
        self.norm3 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x, mask, memory=None, memory_mask=None):
        x = x + self.own(self.norm1(x), mask=mask)
        if self.cross is not None and self.norm2 is not None:
            x = x + self.cross(self.norm2(x), memory, mask=memory_mask)
        return x + self.down(nnx.relu(self.up(self.norm3(x))))


class Translator(nnx.Module):
    def __init__(self, width=16, vocabularies=(40, 48), *, rngs):
        source, target = vocabularies
        self.source = nnx.Embed(source, width, rngs=rngs)
        self.target = nnx.Embed(target, width, rngs=rngs)
        self.encoder = nnx.List([Layer(width, 4, 32, cross=False, rngs=rngs)])
        self.decoder = nnx.List([Layer(width, 4, 32, cross=True, rngs=rngs)])
        self.head = nnx.Linear(width, target, rngs=rngs)

    def __call__(self, source, target):
        there = (source > 0)[:, None, None, :]
        x = self.source(source)
        for layer in self.encoder:
            x = layer(x, there)
        y = self.target(target)
        causal = nnx.make_causal_mask(target)
        for layer in self.decoder:
            y = layer(y, causal, x, there)
        return self.head(y)


class LinenTranslator(nn.Module):
    @nn.compact
    def __call__(self, source, target):
        def attention():
            return nn.MultiHeadDotProductAttention(num_heads=4)

        def feed(x):
            return x + nn.Dense(16)(nn.relu(nn.Dense(32)(nn.LayerNorm()(x))))

        x = nn.Embed(40, 16)(source)
        there = nn.make_attention_mask(jnp.ones_like(source), source > 0)
        x = feed(x + attention()(nn.LayerNorm()(x), mask=there))
        y = nn.Embed(48, 16)(target)
        y = y + attention()(nn.LayerNorm()(y), mask=nn.make_causal_mask(target))
        across = nn.make_attention_mask(jnp.ones_like(target), source > 0)
        y = feed(y + attention()(nn.LayerNorm()(y), x, mask=across))
        return nn.Dense(48)(y)


def batch(rows=8):
    rng = np.random.default_rng(0)
    source = rng.integers(1, 40, (rows, 12)).astype("int32")
    source[:, 9:] = 0
    target = rng.integers(0, 48, (rows, 11)).astype("int32")
    return source, {"in": target[:, :-1], "out": target[:, 1:]}


def loss(model, batch):
    source, target = batch
    logits = model(source, target["in"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, target["out"]).mean()


def in_nnx():
    return jaxpar.model(Translator, loss, batch())


def in_linen():
    return jaxpar.model(LinenTranslator, loss, batch())
