"""A small residual network with BatchNorm, in two stages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxpar
from plain._batches import images


class Block(nnx.Module):
    def __init__(self, ins, outs, stride, *, rngs):
        self.conv1 = nnx.Conv(ins, outs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(outs, rngs=rngs)
        self.conv2 = nnx.Conv(outs, outs, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(outs, rngs=rngs)
        self.short = (
            nnx.Conv(ins, outs, (1, 1), strides=stride, use_bias=False, rngs=rngs)
            if stride != 1 or ins != outs
            else None
        )

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nnx.Module):
    def __init__(self, *, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Block(8, 8, 1, rngs=rngs), Block(8, 16, 2, rngs=rngs)])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class LinenBlock(nn.Module):
    outs: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train):
        def norm():
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)

        strides = (self.stride, self.stride)
        y = jax.nn.relu(norm()(nn.Conv(self.outs, (3, 3), strides, use_bias=False)(x)))
        y = norm()(nn.Conv(self.outs, (3, 3), use_bias=False)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.outs, (1, 1), strides, use_bias=False)(x)
        return jax.nn.relu(x + y)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = jax.nn.relu(nn.Conv(8, (3, 3))(x))
        for outs, stride in ((8, 1), (16, 2)):
            x = LinenBlock(outs, stride)(x, train)
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


def loss(model, batch):
    logits = model(batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def in_nnx():
    return jaxpar.model(lambda rngs: ResNet(rngs=rngs), loss, images(), name="resnet")


def in_linen():
    return jaxpar.model(LinenResNet(), loss, images())
