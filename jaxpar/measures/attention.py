"""Attention: how a program computes it, fused or with every score held, and why."""

from jaxpar.attention.cudnn import unfit
from jaxpar.attention.fused import FUSED
from jaxpar.core.annotations import ATTEND
from jaxpar.core.nvidia import fuses, has_cudnn
from jaxpar.jaxprs.equations import equations
from jaxpar.program.record import Program

INSTALL = "pip install 'jaxpar[fused]'"


def attention_of(program: Program) -> str:
    """How attention is computed, in a sentence; "" where there is nothing to say."""
    calls = [eqn for eqn, _ in equations(program.step.asked.loss.closed) if _name(eqn) == ATTEND]
    if not calls:
        return ""
    fused = any(_name(e) == FUSED for e, _ in equations(program.step.traced.closed))
    simulated = program.hardware.kind == "simulated"
    if not fused:
        return "" if simulated else f"attention is whole, every score held: {_why(calls)}"
    if simulated:
        return "attention is computed in blocks of keys here, and fused by cuDNN on NVIDIA GPUs"
    blocks = "attention is computed in blocks of keys, which takes longer than fused: "
    if not has_cudnn():
        return f"{blocks}cuDNN is not here for XLA to compile with ({INSTALL})"
    if not all(fuses(call.invars[0].aval.shape[-1]) for call in calls):
        return f"{blocks}this machine's GPUs are older than cuDNN's needs for such heads"
    return "attention is fused by cuDNN, and no score is held"


def _why(calls) -> str:
    """Why none of the calls is fused."""
    call = calls[0]
    if call.params["implementation"] == "whole":
        return "it was asked for so"
    q, _, v = (var.aval for var in call.invars)
    fault = unfit(q.dtype, q.shape[-1], v.shape[-1])
    return f"cuDNN cannot fuse it, since {fault}" if fault else "its mode cannot fuse it"


def _name(eqn) -> str:
    return eqn.primitive.name
