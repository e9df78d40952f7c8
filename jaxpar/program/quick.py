"""Compilation of what runs a few times: the same program, machine code made in less time."""

from __future__ import annotations

from typing import Any

from jaxpar.hardware.record import Hardware
from jaxpar.program.warnings import compile_quietly

QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""For code run once, or never, on devices that are not there: made in a fifth of the time."""

FEW_PASSES: dict[str, Any] = {"xla_llvm_disable_expensive_passes": True}
"""What leaves still more out, and nothing that rounds otherwise: for a probe, run once."""


def compile_quickly(hardware: Hardware, function: Any, *arguments: Any) -> Any:
    """A jitted function compiled to run a few times.

    Args:
        hardware: that it runs on.
        function: what jax.jit gives.
        arguments: abstract ones.
    """
    lowered = function.lower(*arguments)
    options = {**QUICK, **FEW_PASSES} if hardware.kind == "simulated" else None
    return compile_quietly(lambda: lowered.compile(options))
