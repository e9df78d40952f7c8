"""Adafactor: second moments of a matrix kept as a row and a column (Shazeer and Stern 2018)."""

import optax

from jaxpar.optimizers.record import Dims, Optimizer, Recipe, check_fraction, decayed_and_scaled


def optimizer(
    recipe: Recipe, dims: Dims, *, decay_rate: float = 0.8, factored_from: int = 128
) -> Optimizer:
    """Return Adafactor, updates scaled by the size of each weight.

    Args:
        recipe: rate and weight decay.
        dims: of every parameter.
        decay_rate: exponent by which the second moments forget less and less.
        factored_from: size of both dims from which a matrix is kept as a row and a column.
    """
    check_fraction(decay_rate=decay_rate)
    rule = optax.adafactor(decay_rate=decay_rate, min_dim_size_to_factor=factored_from)
    return decayed_and_scaled(rule, recipe, dims)
