"""A small residual-free convolutional network with BatchNorm, so that a step has state to carry.

Filters come in column-row pairs like the perceptron's layers. Batch statistics are taken over the
whole global batch under every layout, as one device would.
"""

from dataclasses import dataclass, replace

import jax
from flax import nnx

from jaxpar.models.classify import classification_loss
from jaxpar.models.record import MOST_LAYERS, Field, Model, check_sizes

_partitioned = nnx.with_partitioning


@dataclass(frozen=True)
class ConvNet:
    """Sizes of the network.

    Attributes:
        side: of an image, which is square.
        channels: that every 3 x 3 filter makes.
        stages: pairs of filters.
        classes: that are told apart.
        batch: rows in a global batch.
    """

    side: int = 8
    channels: int = 64
    stages: int = 2
    classes: int = 10
    batch: int = 64


class Network(nnx.Module):
    """Images (batch, side, side, 1) -> logits (batch, classes)."""

    def __init__(self, config: ConvNet, rngs: nnx.Rngs):
        count = 2 * config.stages
        sizes = (1, *[config.channels] * count)
        dims = ("gray", *(f"channels_{i}" for i in range(count)))
        self.filters = nnx.List(
            nnx.Conv(
                sizes[i],
                sizes[i + 1],
                kernel_size=(3, 3),
                use_bias=False,
                kernel_init=_partitioned(
                    nnx.initializers.he_normal(), ("tap_y", "tap_x", dims[i], dims[i + 1])
                ),
                rngs=rngs,
            )
            for i in range(count)
        )
        self.norms = nnx.List(
            nnx.BatchNorm(
                config.channels,
                momentum=0.9,
                scale_init=_partitioned(nnx.initializers.ones_init(), (dims[i + 1],)),
                bias_init=_partitioned(nnx.initializers.zeros_init(), (dims[i + 1],)),
                rngs=rngs,
            )
            for i in range(count)
        )
        self.head = nnx.Linear(
            config.channels,
            config.classes,
            kernel_init=_partitioned(nnx.initializers.lecun_normal(), (dims[-1], "classes")),
            bias_init=_partitioned(nnx.initializers.zeros_init(), ("classes",)),
            rngs=rngs,
        )

    def __call__(self, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Score `image`; there is no dropout, so `key` is not used."""
        del key
        x = image
        for index, (conv, norm) in enumerate(zip(self.filters, self.norms, strict=True)):
            x = jax.nn.relu(norm(conv(x)))
            if index % 2 and x.shape[1] > 2:
                x = nnx.avg_pool(x, (2, 2), strides=(2, 2))
        return self.head(x.mean(axis=(1, 2)))


def model(config: ConvNet = ConvNet(), **fields) -> Model:  # noqa: B008  (frozen)
    """Return the convolutional network; `fields` replace those of `ConvNet`."""
    config = replace(config, **fields)
    check_sizes("convnet", config, stages=MOST_LAYERS)
    image = (config.batch, config.side, config.side, 1)
    return Model(
        name="convnet",
        build=lambda rngs: Network(config, rngs),
        loss=classification_loss,
        batch={
            "image": Field(image, "float32", ("batch", "height", "width", "gray")),
            "label": Field((config.batch,), "int32", ("batch",), below=config.classes),
            "weight": Field((config.batch,), "float32", ("batch",)),
        },
        roles={f"channels_{i}": ("inner", "residual")[i % 2] for i in range(2 * config.stages)},
        data="digits",
        config=config,
        remake=model,
    )
