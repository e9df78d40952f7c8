"""Lion: the sign of an interpolated momentum, one moment to keep (Chen et al. 2023)."""

import optax

from jaxpar.optimizers.record import Dims, Optimizer, Recipe, check_fraction, matrices


def optimizer(recipe: Recipe, dims: Dims, *, b1: float = 0.9, b2: float = 0.99) -> Optimizer:
    """Return Lion, which wants a third to a tenth of AdamW's rate.

    Args:
        recipe: rate and weight decay.
        dims: of every parameter.
        b1: share of the momentum in the update.
        b2: decay rate of the momentum.
    """
    check_fraction(b1=b1, b2=b2)
    return optax.lion(
        recipe.rate(), b1=b1, b2=b2, weight_decay=recipe.weight_decay, mask=matrices(dims)
    )
