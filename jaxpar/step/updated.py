"""What a person's optimizer is called with: the gradients, and what else it takes.

optax hands on what an update is given besides gradients to those parts that take it, but some of
its transformations take nothing more (`contrib.sam`), and some are objects that make one
(`MultiSteps`).
"""

from inspect import Parameter, signature
from typing import Any

import optax


def transformation(optimizer: Any) -> Any:
    """The transformation that an object of optax's, such as MultiSteps, stands for; else itself."""
    make = getattr(optimizer, "gradient_transformation", None)
    return make() if callable(make) else optimizer


def updated(
    optimizer: optax.GradientTransformation, gradients: Any, state: Any, parameters: Any, loss: Any
) -> tuple[Any, Any]:
    """(updates, new state), of trees like the parameters' own; the loss for optimizers that ask."""
    update = optax.with_extra_args_support(optimizer).update
    taken = signature(update).parameters
    more = {"value": loss, "grad": gradients}
    if not any(p.kind is Parameter.VAR_KEYWORD for p in taken.values()):
        more = {name: value for name, value in more.items() if name in taken}
    return update(gradients, state, parameters, **more)
