"""SGD: stochastic gradient descent with momentum and decoupled weight decay."""

import optax

from jaxpar.optimizers.record import Dims, Optimizer, Recipe, check_fraction, matrices


def optimizer(
    recipe: Recipe, dims: Dims, *, momentum: float = 0.9, nesterov: bool = False
) -> Optimizer:
    """Return SGD.

    Args:
        recipe: rate and weight decay.
        dims: of every parameter.
        momentum: decay rate of the sum of gradients; 0 keeps no optimizer state.
        nesterov: whether the gradient counts a step ahead.
    """
    check_fraction(momentum=momentum)
    return optax.chain(
        optax.trace(momentum, nesterov) if momentum else optax.identity(),
        optax.add_decayed_weights(recipe.weight_decay, matrices(dims)),
        optax.scale_by_learning_rate(recipe.rate()),
    )
