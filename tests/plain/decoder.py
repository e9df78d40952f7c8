"""A decoder: grouped queries, one matrix for queries, keys and values, tied embeddings, dropout."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import tokens


class Attention(nnx.Module):
    def __init__(self, width, heads, kv_heads, *, rngs):
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.qkv = nnx.Linear(width, (heads + 2 * kv_heads) * self.size, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        rows, length, width = x.shape
        cuts = (self.heads * self.size, (self.heads + self.kv_heads) * self.size)
        q, k, v = jnp.split(self.qkv(x), cuts, axis=-1)
        q = q.reshape(rows, length, self.heads, self.size)
        k = k.reshape(rows, length, self.kv_heads, self.size)
        v = v.reshape(rows, length, self.kv_heads, self.size)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.reshape(rows, length, width))


class Layer(nnx.Module):
    def __init__(self, width, *, rngs):
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.attention = Attention(width, 8, 4, rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.gate = nnx.Linear(width, 2 * width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, use_bias=False, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        y = self.norm2(x)
        return x + self.dropout(self.down(nnx.silu(self.gate(y)) * self.up(y)))


class Decoder(nnx.Module):
    def __init__(self, width=32, vocabulary=64, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.layers = nnx.List([Layer(width, rngs=rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.norm(x))


def loss(model, batch):
    logits = model(batch["ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()


def in_nnx():
    return jaxpar.model(Decoder, loss, tokens())
