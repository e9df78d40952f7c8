"""What a mode is given and what it gives: the one contract of all of them.

A mode is a function `mode(asked) -> Differentiated`. It turns a traced loss into gradients on a
mesh, and refuses, by LayoutError, a layout that it cannot differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxpar.inference.record import TracedLoss
from jaxpar.layout.record import Layout
from jaxpar.step.placement import Placement, placement
from jaxpar.step.rewritten import rewritten_loss


@dataclass(frozen=True)
class Island:
    """Operations of one kind at one line that were left to XLA, and why JAX would not type them."""

    primitive: str
    source: str
    why: str


@dataclass(frozen=True)
class Asked:
    """What is to be differentiated.

    Attributes:
        layout: of the rows that are differentiated at once: a microbatch's, or the whole batch's
            for a mode that takes microbatches apart itself.
        microbatches: into how many parts the batch is split.
        factor: what the loss's total is multiplied by before it is differentiated.
    """

    layout: Layout
    microbatches: int
    factor: float

    @cached_property
    def loss(self) -> TracedLoss:
        """The loss in training, on the rows of one microbatch."""
        return rewritten_loss(self.microbatch.model)

    @cached_property
    def microbatch(self) -> Layout:
        """The layout of one microbatch."""
        return self.layout.with_rows(self.layout.model.batch_size // self.microbatches)

    @cached_property
    def placement(self) -> Placement:
        """How every array that the loss names is sharded."""
        return placement(self.microbatch, self.loss)


@dataclass(frozen=True)
class Differentiated:
    """A loss differentiated on a mesh.

    Attributes:
        gradients: (lands, parameters, model_state, batch, key) -> (gradients of the total x factor
            by path, new model state, {name: Mean}), of one microbatch's rows. They are sharded as
            the attribute `lands` of the layout's arrays says.
        takes_all: whether `gradients` takes the whole batch and splits it into microbatches itself.
        evaluate: (parameters, model_state, batch) -> {name: Mean} on the whole batch; None where
            evaluation is left to XLA's partitioner.
        is_partitioned: whether XLA's partitioner places its collectives.
        islands: operations that were left to XLA, known once `gradients` has been traced.
    """

    gradients: Callable[..., Any]
    takes_all: bool = False
    evaluate: Callable[..., Any] | None = None
    is_partitioned: bool = False
    islands: list[Island] = field(default_factory=list)
