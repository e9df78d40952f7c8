"""A variational autoencoder, which draws its code from a random stream of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxpar
from plain._batches import vectors


class VAE(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.encoder = nnx.Linear(12, 32, rngs=rngs)
        self.mean = nnx.Linear(32, 6, rngs=rngs)
        self.scale = nnx.Linear(32, 6, rngs=rngs)
        self.decoder = nnx.Linear(6, 32, rngs=rngs)
        self.out = nnx.Linear(32, 12, rngs=rngs)
        self.rngs = rngs.fork()

    def __call__(self, x):
        hidden = nnx.relu(self.encoder(x))
        mean, log_scale = self.mean(hidden), self.scale(hidden)
        code = mean + jnp.exp(log_scale) * jax.random.normal(self.rngs.noise(), mean.shape)
        return self.out(nnx.relu(self.decoder(code))), mean, log_scale


class LinenVAE(nn.Module):
    @nn.compact
    def __call__(self, x):
        hidden = jax.nn.relu(nn.Dense(32)(x))
        mean, log_scale = nn.Dense(6)(hidden), nn.Dense(6)(hidden)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        code = mean + jnp.exp(log_scale) * noise
        return nn.Dense(12)(jax.nn.relu(nn.Dense(32)(code))), mean, log_scale


def loss(model, batch):
    again, mean, log_scale = model(batch["x"])
    recall = jnp.mean(jnp.sum((again - batch["x"]) ** 2, axis=-1))
    price = 0.5 * jnp.sum(mean**2 + jnp.exp(2 * log_scale) - 1 - 2 * log_scale, axis=-1)
    return recall + jnp.mean(price), {"recall": recall}


def in_nnx():
    return jaxpar.model(VAE, loss, {"x": vectors()["x"]})


def in_linen():
    return jaxpar.model(LinenVAE, loss, {"x": vectors()["x"]})
