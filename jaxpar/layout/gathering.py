"""Whether the stages of a pipeline gather their weights once a step, or for every microbatch.

Gathered once, a stage holds all of its weights and the unsummed gradients of all of them; gathered
each time, one layer of both, and every microbatch gathers twice and scatters once.
"""

from collections.abc import Mapping

from jax.numpy import dtype

from jaxpar.core.mesh import MeshShape, shards
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.stages import runs_in_stages, stages_of
from jaxpar.models.record import Model
from jaxpar.strategies.record import Strategy

MOST_BYTES = 8_000_000_000
"""What may be held for it on each device unless one asks: a tenth of the memory of an H100."""


def gathers_once(layout: Layout) -> bool:
    """Whether a layout's stages gather their weights before the first microbatch."""
    held = held_bytes(layout.model, layout.mesh, layout.parameters)
    return _is_once(layout.strategy, held)


def held_bytes(model: Model, mesh: MeshShape, parameters: Mapping[str, Array]) -> int:
    """Bytes on each device of weights gathered once a step, and of their accumulated gradients."""
    compute = model.compute_dtype
    held = 0
    for array in parameters.values():
        if array.stored != array.used:
            narrow = compute is not None and len(array.shape) > 1
            each = dtype(compute if narrow else array.dtype).itemsize + dtype(array.dtype).itemsize
            held += array.size // shards(array.used, mesh) * each
    return held


def gathering_notes(
    model: Model, strategy: Strategy, mesh: MeshShape, parameters: Mapping[str, Array]
) -> list[str]:
    """Which of the two a pipeline does, a sentence; none where no weight is gathered."""
    held = held_bytes(model, mesh, parameters)
    if not held or not runs_in_stages(strategy, mesh):
        return []
    said = f"{held / 1e9:,.2f} GB" if held >= 1e9 else f"{held / 1e6:,.2f} MB"
    more = f"holds at least {said} of them and of their unsummed gradients on each device"
    if _is_once(strategy, held):
        return [
            f"each stage gathers its weights once a step, and {more}; --set gather=microbatch "
            "holds those of one layer, and gathers twice for every microbatch"
        ]
    return [
        "each stage gathers its weights twice for every microbatch, one layer at a time; --set "
        f"gather=step gathers them once a step, and {more}"
    ]


def _is_once(strategy: Strategy, held: int) -> bool:
    """Whether so many bytes are held; True where that is asked for, or little enough."""
    asked = stages_of(strategy).gather
    return asked == "step" or (asked == "auto" and held <= MOST_BYTES)
