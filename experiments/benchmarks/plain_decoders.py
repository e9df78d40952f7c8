"""Decoders of Llama's shape as one writes them with Flax's own layers, in Linen and in NNX."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from jaxpar.models.record import Model

VOCABULARY = 32_000


class LinenBlock(nn.Module):
    """A block of Llama's shape, as one writes it with Flax's own layers."""

    width: int
    heads: int
    ffn: int

    @nn.compact
    def __call__(self, x, mask):
        """(batch, sequence, width) to the same."""

        def dense(size, name):
            return nn.Dense(size, use_bias=False, dtype=jnp.bfloat16, name=name)

        y = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=jnp.bfloat16, use_bias=False)
        x = x + attention(y, mask=mask)
        y = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        y = nn.silu(dense(self.ffn, "gate")(y)) * dense(self.ffn, "up")(y)
        return x + dense(self.width, "down")(y)


class LinenDecoder(nn.Module):
    """Token ids (batch, sequence) to logits (batch, sequence, vocabulary)."""

    width: int
    layers: int
    heads: int
    ffn: int

    @nn.compact
    def __call__(self, tokens):
        """Score the next token at every position."""
        mask = nn.make_causal_mask(tokens)
        x = nn.Embed(VOCABULARY, self.width, dtype=jnp.bfloat16)(tokens)
        for _ in range(self.layers):
            x = nn.remat(LinenBlock)(self.width, self.heads, self.ffn)(x, mask)
        x = nn.RMSNorm(dtype=jnp.bfloat16)(x)
        return nn.Dense(VOCABULARY, use_bias=False, dtype=jnp.bfloat16)(x)


class NnxBlock(nnx.Module):
    """The same block in NNX."""

    def __init__(self, width: int, heads: int, ffn: int, rngs: nnx.Rngs):
        how: dict[str, Any] = {"use_bias": False, "dtype": jnp.bfloat16, "rngs": rngs}
        self.norm1 = nnx.RMSNorm(width, dtype=jnp.bfloat16, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, **how)
        self.norm2 = nnx.RMSNorm(width, dtype=jnp.bfloat16, rngs=rngs)
        self.gate, self.up = nnx.Linear(width, ffn, **how), nnx.Linear(width, ffn, **how)
        self.down = nnx.Linear(ffn, width, **how)

    def __call__(self, x, mask):
        """(batch, sequence, width) to the same."""
        x = x + self.attention(self.norm1(x), mask=mask)
        y = self.norm2(x)
        return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


class NnxDecoder(nnx.Module):
    """Token ids (batch, sequence) to logits (batch, sequence, vocabulary)."""

    def __init__(self, width: int, layers: int, heads: int, ffn: int, *, rngs: nnx.Rngs):
        bfloat16 = jnp.bfloat16
        self.embed = nnx.Embed(VOCABULARY, width, dtype=bfloat16, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(width, heads, ffn, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, dtype=bfloat16, rngs=rngs)
        self.head = nnx.Linear(width, VOCABULARY, use_bias=False, dtype=bfloat16, rngs=rngs)

    def __call__(self, tokens):
        """Score the next token at every position."""
        mask = nnx.make_causal_mask(tokens)
        x = self.embed(tokens)
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x, mask))(block, x)
        return self.head(self.norm(x))


PLAIN: dict[str, Callable[..., Any]] = {
    "linen": LinenDecoder,
    "nnx": lambda *sizes: lambda rngs: NnxDecoder(*sizes, rngs=rngs),
}
"""Name -> what makes a decoder of a width, layers, heads and inner width."""


def plain_model(name: str, rows: int, sequence: int, sizes: Mapping[str, int]) -> Model:
    """A plain decoder as `jaxpar.model` takes it."""
    net = PLAIN[name](*(sizes[size] for size in ("width", "layers", "heads", "ffn")))

    def loss(net, batch):
        logits = net(batch["tokens"]).astype(jnp.float32)
        own = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.mean(own)

    ids = jax.ShapeDtypeStruct((rows, sequence), jnp.int32)
    return jaxpar.model(net, loss, {"tokens": ids, "targets": ids})
