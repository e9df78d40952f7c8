"""A prediction's timeline: every instruction of a step on its stream, for Perfetto or Chrome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxpar.costs.replay import Slice
from jaxpar.costs.timeline import trace
from jaxpar.hlo.parse import parse
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


def _module(op_name: str) -> str:
    """The end of a name stack, which says what an operation is.

    >>> _module("jit(update)/transpose(jvp())/while/body/closed_call/checkpoint/bsd,dhk->bshk/dot")
    'bsd,dhk->bshk/dot'
    """
    return "/".join(op_name.split("/")[-2:])
