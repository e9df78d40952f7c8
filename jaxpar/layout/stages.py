"""Whether a model's layers can be split into the stages asked for, and their order in storage.

Pure; asked when a model is laid out and when its step is made. Raises LayoutError with the nearest
counts that work.
"""

from collections.abc import Sequence
from inspect import signature

from jaxpar.core.catalogue import SCHEDULES
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape
from jaxpar.models.record import Model
from jaxpar.schedules.record import Schedule
from jaxpar.strategies.record import Stages, Strategy

AXIS = "pipe"
"""The mesh axis along which stages are placed."""


def runs_in_stages(strategy: Strategy, mesh: MeshShape) -> bool:
    """Whether there is more than one stage."""
    return strategy.stages is not None and mesh.size(AXIS) > 1


def stages_of(strategy: Strategy) -> Stages:
    """How a strategy that runs layers in stages does so."""
    assert strategy.stages is not None, strategy.name
    return strategy.stages


def chunks_of(stages: Stages) -> int:
    """Chunks of layers a stage: as many as were asked for, else as its schedule is made for."""
    return stages.chunks or signature(SCHEDULES.load(stages.schedule)).parameters["chunks"].default


def schedule_for(strategy: Strategy, mesh: MeshShape, microbatches: int) -> Schedule:
    """The schedule of a strategy with stages, for a mesh and a number of microbatches."""
    make = SCHEDULES.load(stages_of(strategy).schedule)
    return make(mesh.size(AXIS), microbatches, chunks_of(stages_of(strategy)))


def check_stages(model: Model, strategy: Strategy, mesh: MeshShape, counts: Sequence[int]) -> None:
    """Refuse a model whose layers cannot be split into stages; `counts` are its stacks' layers."""
    if not runs_in_stages(strategy, mesh):
        return
    schedule_for(strategy, mesh, microbatches=mesh.size(AXIS))  # an unknown schedule, or its chunks
    if "through" not in model.hooks or not counts:
        raise LayoutError(
            f"model '{model.name}' has no stack of equal layers that it runs by `through`, and "
            f"strategy '{strategy.name}' splits one into stages: use pipe=1, or a strategy without "
            "stages"
        )
    stages, chunks = mesh.size(AXIS), chunks_of(stages_of(strategy))
    pieces = stages * chunks
    for layers in sorted(set(counts)):
        each = f"{stages} stages of {chunks} chunks" if chunks > 1 else f"{stages} stages"
        if layers < pieces:
            most = max(k for k in range(1, stages + 1) if layers % (k * chunks) == 0 or k == 1)
            raise LayoutError(
                f"model '{model.name}' has {layers} layers, and {each} along mesh axis '{AXIS}' "
                f"need at least one layer each: use pipe={most}, or layers={pieces}"
            )
        if layers % pieces and not stages_of(strategy).pad:
            fitting = [k for k in range(1, layers + 1) if layers % (k * chunks) == 0]
            near = {max((k for k in fitting if k < stages), default=1)}
            near |= {min((k for k in fitting if k > stages), default=stages)} - {stages}
            raise LayoutError(
                f"model '{model.name}' has {layers} layers, which {each} along mesh axis '{AXIS}' "
                f"do not share evenly: use pipe={' or '.join(map(str, sorted(near)))}, or "
                f"layers={layers // pieces * pieces} or {-(-layers // pieces) * pieces}, or "
                "--set pad=true, which pads with layers that do nothing"
            )


def is_padded(strategy: Strategy, mesh: MeshShape, layers: int) -> bool:
    """Whether a stack of so many layers is padded; it is then replicated on every stage."""
    return runs_in_stages(strategy, mesh) and bool(
        layers % (mesh.size(AXIS) * chunks_of(stages_of(strategy)))
    )


def layer_order(strategy: Strategy, mesh: MeshShape, layers: int) -> tuple[int, ...] | None:
    """The layer at each place of a stored stack, by its number; None for their own order.

    With several chunks a stage, each stage's layers are not neighbours in the network; they are
    stored so that they are neighbours in the array, or every step would begin by moving weights.
    """
    if not runs_in_stages(strategy, mesh) or is_padded(strategy, mesh, layers):
        return None
    stages, chunks = mesh.size(AXIS), chunks_of(stages_of(strategy))
    if chunks == 1:
        return None
    each = layers // (stages * chunks)
    starts = ((c * stages + s) * each for s in range(stages) for c in range(chunks))
    return tuple(layer for start in starts for layer in range(start, start + each))
