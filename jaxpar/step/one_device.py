"""A model's loss on one device: the person's own function, called by Python as it is.

This is what layouts are compared with, so it goes through no jaxpr of ours.
"""

from __future__ import annotations

from jaxpar.inference.traced import checked
from jaxpar.layout.record import Layout
from jaxpar.models.modules import take_apart, values_of


def plain_loss(layout: Layout, parameters, model_state, batch, key, *, train: bool = True):
    """The model's own loss: (Mean, metrics, new model state by path).

    Args:
        layout: of which only the model and its module are used.
        parameters, model_state: path -> array.
        batch: field name -> array.
        key: random key of dropout, or None.
        train: whether in training, or else in evaluation.
    """
    module = layout.module.put_together(parameters, model_state)
    module.train() if train else module.eval()
    loss, metrics = checked(layout.model, layout.model.loss(module, batch, key=key))
    new = values_of(take_apart(module, layout.model.trainable).state) if train else model_state
    return loss, metrics, new
