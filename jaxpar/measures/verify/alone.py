"""One device's side of a comparison, made once however many layouts are compared with it."""

from __future__ import annotations

from typing import Any

from jaxpar.core.jax_compat import setting
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.record import Hardware
from jaxpar.layout.lay_out import lay_out
from jaxpar.models.record import Model
from jaxpar.program.record import Program, compile_step
from jaxpar.step.make_step import make_step
from jaxpar.strategies.record import Strategy

MOST = 6
"""Programs kept: layouts of one model are mostly tried one after another."""

_kept: list[tuple[tuple, Program]] = []


def on_one_device(
    model: Model, *, optimizer: Any, microbatches: int, hardware: Hardware
) -> Program:
    """The model's step on one device, compiled to run a few times.

    The program is the one made before if what it computes is the same: the same functions build the
    module, take the loss and update, at the same sizes.
    """
    alone = lay_out(model, strategy=Strategy(name="one device"), mesh=MeshShape())
    key = (
        (model.build, model.loss, dict(model.batch), model.trainable, model.compute_dtype),
        {path: (array.shape, array.dtype) for path, array in alone.parameters.items()},
        (optimizer, microbatches, hardware, setting("jax_enable_x64")),
    )
    for at, (known, program) in enumerate(_kept):
        if known == key:
            _kept.append(_kept.pop(at))
            return program
    step = make_step(alone, optimizer=optimizer, microbatches=microbatches)
    program = compile_step(step, hardware=hardware, for_speed=False)
    _kept.append((key, program))
    del _kept[:-MOST]
    return program
