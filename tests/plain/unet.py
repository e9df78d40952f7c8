"""A U-Net: skips joined along channels, the way up by transposed convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxpar
from plain._batches import images


class Twice(nnx.Module):
    def __init__(self, ins, outs, *, rngs):
        self.a = nnx.Conv(ins, outs, (3, 3), rngs=rngs)
        self.b = nnx.Conv(outs, outs, (3, 3), rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.b(nnx.relu(self.a(x))))


class UNet(nnx.Module):
    def __init__(self, *, rngs):
        self.down1 = Twice(3, 8, rngs=rngs)
        self.down2 = Twice(8, 16, rngs=rngs)
        self.middle = Twice(16, 32, rngs=rngs)
        self.grow2 = nnx.ConvTranspose(32, 16, (2, 2), strides=(2, 2), rngs=rngs)
        self.up2 = Twice(32, 16, rngs=rngs)
        self.grow1 = nnx.ConvTranspose(16, 8, (2, 2), strides=(2, 2), rngs=rngs)
        self.up1 = Twice(16, 8, rngs=rngs)
        self.out = nnx.Conv(8, 3, (1, 1), rngs=rngs)

    def __call__(self, x):
        def half(x):
            return nnx.max_pool(x, (2, 2), strides=(2, 2))

        one = self.down1(x)
        two = self.down2(half(one))
        y = self.middle(half(two))
        y = self.up2(jnp.concatenate([self.grow2(y), two], axis=-1))
        y = self.up1(jnp.concatenate([self.grow1(y), one], axis=-1))
        return self.out(y)


class LinenUNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        def twice(x, outs):
            for _ in range(2):
                x = jax.nn.relu(nn.Conv(outs, (3, 3))(x))
            return x

        one = twice(x, 8)
        y = twice(nn.avg_pool(one, (2, 2), strides=(2, 2)), 16)
        y = nn.ConvTranspose(8, (2, 2), strides=(2, 2))(y)
        return nn.Conv(3, (1, 1))(twice(jnp.concatenate([y, one], axis=-1), 8))


def loss(model, batch):
    return jnp.mean(jnp.square(model(batch["image"]) - batch["image"]))


def in_nnx():
    return jaxpar.model(UNet, loss, {"image": images(side=4)["image"]})


def in_linen():
    return jaxpar.model(LinenUNet, loss, {"image": images(side=4)["image"]})
