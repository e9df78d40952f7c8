"""A prediction's timeline: every instruction of a step on its stream, for Perfetto or Chrome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpar.core.mesh import sizes_of
from jaxpar.costs.replay import Slice
from jaxpar.costs.timeline import trace
from jaxpar.costs.timeline import tracks as _tracks
from jaxpar.hlo.collectives import axes_of, collectives
from jaxpar.hlo.parse import parse
from jaxpar.measures.explain.meaning import phase_of_name
from jaxpar.measures.predict import Prediction


def timeline(prediction: Prediction) -> dict[str, Any]:
    """The trace of one predicted step, a JSON-ready dict that ui.perfetto.dev opens.

    Args:
        prediction: from `jaxpar.predict`.
    """
    program = prediction.program
    module = parse(program.text)
    layout = program.step.layout

    def about(one: Slice) -> Mapping[str, Any]:
        i = module.computations[one.computation].by_name[one.name]
        frame = i.frames[0] if i.frames else None
        return {
            "module": _module(i.op_name),
            "op": i.op_name,
            "shape": ", ".join(f"{d}[{','.join(map(str, s))}]" for d, s in i.shapes),
            "source": frame and f"{frame.file}:{frame.line}",
        }

    name = f"{layout.model.name} {layout.strategy.name} {layout.mesh}, {program.hardware.name}"
    return trace(f"{name} (predicted)", prediction.replay, about)


def tracks(prediction: Prediction) -> list[list[Any]]:
    """One predicted step as stretches: [track, what, start seconds, seconds, name].

    Args:
        prediction: from `jaxpar.predict`.
    """
    module = parse(prediction.program.text)
    sizes = sizes_of(prediction.program.step.layout.mesh)
    known = {(one.computation, one.name): one for one in collectives(module)}

    def about(one: Slice) -> tuple[str, str]:
        i = module.computations[one.computation].by_name[one.name]
        collective = known.get((one.computation, one.name))
        if collective is None:
            phase, recomputed = phase_of_name(i.op_name)
            return f"{phase}, recomputed" if recomputed else phase, _module(i.op_name) or i.opcode
        axes = " x ".join(axes_of(collective, sizes))
        return f"{collective.kind} over {axes}", _module(i.op_name) or one.name

    return _tracks(prediction.replay, about)


def _module(op_name: str) -> str:
    """The end of a name stack, which says what an operation is.

    >>> _module("jit(update)/transpose(jvp())/while/body/closed_call/checkpoint/bsd,dhk->bshk/dot")
    'bsd,dhk->bshk/dot'
    """
    return "/".join(op_name.split("/")[-2:])
