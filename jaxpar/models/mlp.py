"""A perceptron for the handwritten digits: hidden layers in column-row pairs, then ten classes.

Hidden widths alternate between the roles `inner` and `residual`, so that tensor parallelism pairs
the layers with one sum a pair.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.core.errors import RequestError
from jaxpar.models.classify import classification_loss
from jaxpar.models.record import MOST_LAYERS, Field, Model, check_sizes

_partitioned = nnx.with_partitioning


@dataclass(frozen=True)
class MLP:
    """Sizes of the perceptron.

    Attributes:
        pixels: of an image, which is square.
        width: of each hidden layer.
        hidden: layers before the head.
        classes: that are told apart.
        dropout: probability that an activation is left out while training.
        batch: rows in a global batch.
    """

    pixels: int = 64
    width: int = 256
    hidden: int = 3
    classes: int = 10
    dropout: float = 0.0
    batch: int = 64


class Network(nnx.Module):
    """The perceptron: (batch, ...pixels) -> logits (batch, classes)."""

    def __init__(self, config: MLP, rngs: nnx.Rngs):
        sizes = (config.pixels, *[config.width] * config.hidden, config.classes)
        dims = ("pixels", *(f"hidden_{i}" for i in range(config.hidden)), "classes")
        self.layers = nnx.List(
            nnx.Linear(
                size_in,
                size_out,
                kernel_init=_partitioned(nnx.initializers.he_normal(), (dim_in, dim_out)),
                bias_init=_partitioned(nnx.initializers.zeros_init(), (dim_out,)),
                rngs=rngs,
            )
            for size_in, size_out, dim_in, dim_out in zip(
                sizes, sizes[1:], dims, dims[1:], strict=False
            )
        )
        self.rate = config.dropout

    def __call__(self, image: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Score `image`; `key` draws the dropout masks, None leaves dropout out."""
        x = image.reshape(image.shape[0], -1)
        for index, layer in enumerate(self.layers[:-1]):
            x = jax.nn.relu(layer(x))
            if key is not None and self.rate > 0:
                keep = jax.random.bernoulli(jax.random.fold_in(key, index), 1 - self.rate, x.shape)
                x = jnp.where(keep, x / (1 - self.rate), 0)
        return self.layers[-1](x)


def model(config: MLP = MLP(), **fields) -> Model:  # noqa: B008  (frozen)
    """Return the perceptron; `fields` replace those of `MLP`."""
    config = replace(config, **fields)
    check_sizes("mlp", config, hidden=MOST_LAYERS)
    roles = {f"hidden_{i}": ("inner", "residual")[i % 2] for i in range(config.hidden)}
    side = int(config.pixels**0.5)
    if side * side != config.pixels:
        raise RequestError(
            f"mlp: pixels={config.pixels} is not a square image; use {side**2} or {(side + 1) ** 2}"
        )
    return Model(
        name="mlp",
        build=lambda rngs: Network(config, rngs),
        loss=classification_loss,
        batch={
            "image": Field(
                (config.batch, side, side, 1), "float32", ("batch", "height", "width", "one")
            ),
            "label": Field((config.batch,), "int32", ("batch",), below=config.classes),
            "weight": Field((config.batch,), "float32", ("batch",)),
        },
        roles=roles,
        data="digits",
        config=config,
        remake=model,
    )
