"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

import optax

from jaxpar.optimizers.record import Dims, Optimizer, Recipe, check_fraction, matrices


def optimizer(recipe: Recipe, dims: Dims, *, b1: float = 0.9, b2: float = 0.999) -> Optimizer:
    """Return AdamW.

    Args:
        recipe: rate and weight decay.
        dims: of every parameter.
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
    """
    check_fraction(b1=b1, b2=b2)
    return optax.adamw(
        recipe.rate(), b1=b1, b2=b2, weight_decay=recipe.weight_decay, mask=matrices(dims)
    )
