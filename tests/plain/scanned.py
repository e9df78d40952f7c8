"""A deep decoder whose equal layers are stacked and scanned, remade in backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import tokens

LAYERS, WIDTH = 3, 16


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 32, rngs=rngs)
        self.down = nnx.Linear(32, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.down(nnx.gelu(self.up(x)))


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(64, WIDTH, rngs=rngs)

        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs):
            return Layer(rngs)

        self.layers = stack(rngs)
        self.head = nnx.Linear(WIDTH, 64, rngs=rngs)

    def __call__(self, ids):
        @nnx.remat
        def one(layer, x):
            return layer(x)

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def through(x, layer):
            return one(layer, x)

        return self.head(through(self.embed(ids), self.layers))


class LinenLayer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.RMSNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(32)(x))), None


class LinenDecoder(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(64, WIDTH)(ids)
        layers = nn.scan(
            nn.remat(LinenLayer, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=LAYERS,
        )
        x, _ = layers()(x, None)
        return nn.Dense(64)(x)


def loss(model, batch):
    logits = model(batch["ids"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]))


def in_nnx():
    return jaxpar.model(Decoder, loss, tokens())


def in_linen():
    return jaxpar.model(LinenDecoder, loss, jax.tree.map(jnp.asarray, tokens()))
