"""A model's traced loss as a step computes it.

Attention that can be fused is the hook `attend`, and labels' scores are picked by comparing.
"""

from __future__ import annotations

from dataclasses import replace

from jaxpar.attention.written import fused_where_written
from jaxpar.inference.record import TracedLoss
from jaxpar.inference.traced import traced_loss
from jaxpar.jaxprs.compared import compared_where_picked
from jaxpar.models.record import Model


def rewritten_loss(model: Model, *, train: bool = True) -> TracedLoss:
    """The loss of a model on a batch of its size, remembered with its trace.

    Args:
        model, train: as in `traced_loss`.
    """
    traced = traced_loss(model, train=train)
    about = ("rewritten", id(traced.closed))
    if about not in model.traced:
        # With the trace, so that its identity stays its own.
        closed = compared_where_picked(fused_where_written(traced.closed))
        model.traced[about] = (replace(traced, closed=closed), traced)
    return model.traced[about][0]
