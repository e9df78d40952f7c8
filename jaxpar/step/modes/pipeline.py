"""Layers in stages on different devices, microbatch after microbatch by a schedule's table.

The mode of every strategy with stages, whichever was asked for; the collectives of the other axes
are written out as in manual mode.
"""

from __future__ import annotations

from jaxpar.core.errors import LayoutError
from jaxpar.layout.stages import runs_in_stages, schedule_for
from jaxpar.step.modes.record import Asked, Differentiated
from jaxpar.step.pipeline import Gathering, evaluate_in_stages, staged, take_apart
from jaxpar.step.rewritten import rewritten_loss


def mode(asked: Asked) -> Differentiated:
    """The loss differentiated stage by stage.

    Raises:
        LayoutError: the strategy has no stages, or the loss is no stack of layers.
    """
    layout = asked.layout
    if not runs_in_stages(layout.strategy, layout.mesh):
        raise LayoutError(
            f"strategy '{layout.strategy.name}' on mesh {layout.mesh} runs no layers in stages, "
            "which is what mode 'pipeline' does: use --mode auto, or a strategy such as "
            "data+pipeline on a mesh with pipe=2"
        )
    schedule = schedule_for(layout.strategy, layout.mesh, asked.microbatches)
    parts = take_apart(asked.microbatch, asked.loss)

    def evaluate(parameters, model_state, batch):
        del model_state
        tested = rewritten_loss(asked.microbatch.model, train=False)
        tested_parts = take_apart(asked.microbatch, tested)
        run = evaluate_in_stages(layout, tested_parts, schedule, Gathering.of(layout, tested))
        return run(parameters, batch)

    gathering = Gathering.of(layout, asked.loss)
    gradients = staged(layout, parts, schedule, asked.factor, gathering=gathering)
    return Differentiated(gradients, takes_all=True, evaluate=evaluate)
