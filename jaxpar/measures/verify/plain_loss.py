"""A model's loss on one device: the person's own function, called by Python as it is.

This is what layouts are compared with, so it goes through no jaxpr of ours.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxpar.inference.traced import checked, loss_of_rows, module_of, once
from jaxpar.models.modules import Parts, take_apart, values_of
from jaxpar.models.record import Model


def plain_loss(
    model: Model, parts: Parts, parameters, model_state, batch, key, *, train: bool = True
):
    """The model's own loss: (Mean, metrics, new model state by path).

    Args:
        model: whose loss it is.
        parts: its module taken apart.
        parameters, model_state: path -> array.
        batch: field name -> array.
        key: random key of dropout, or None.
        train: whether in training, or else in evaluation.
    """
    module = parts.put_together(parameters, model_state)
    module.train() if train else module.eval()
    loss, metrics = checked(model, model.loss(module, batch, key=key))
    new = values_of(take_apart(module, model.trainable).state) if train else model_state
    return loss, metrics, new


def traced(model: Model) -> Any:
    """The ClosedJaxpr of the model's own loss in training, traced when it is first asked for.

    Its arguments are parameters, state and batch, each by name, and a key; its results those of
    `plain_loss`.
    """
    return once(model, ("plain", *loss_of_rows(model)), lambda: traced_again(model))


def traced_again(model: Model) -> Any:
    """The same jaxpr, by calling the loss on shapes now."""
    parts = module_of(model)
    groups = (values_of(parts.parameters), values_of(parts.state))
    batch = {n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in model.batch.items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.make_jaxpr(lambda *a: plain_loss(model, parts, *a))(*groups, batch, key)
