"""Device memory: what a compiled update takes of one device, by meaning, and whether it fits.

XLA's own totals, with the state's and the batch's arrays as their shardings say. Nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxpar.program.fit import device_memory_bytes, tree_bytes
from jaxpar.program.record import Program

USUAL_FRACTION = 0.75
"""Of a GPU's memory JAX takes this much, if XLA_PYTHON_CLIENT_MEM_FRACTION says nothing else."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of one device.

    Attributes:
        arguments_bytes, outputs_bytes: of what an update is given, and of what it gives.
        reused_bytes: of the outputs, those written where an argument was.
        temporary_bytes: of everything else that the program allocates.
        parameters_bytes, optimizer_state_bytes, model_state_bytes, batch_bytes: of the arguments.
        device_bytes: that the device has; None where that is not known.
        init_peak_bytes: while the state is created; None where it cannot be here.
    """

    arguments_bytes: int
    outputs_bytes: int
    reused_bytes: int
    temporary_bytes: int
    parameters_bytes: int
    optimizer_state_bytes: int
    model_state_bytes: int
    batch_bytes: int
    device_bytes: int | None = None
    init_peak_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes that an update takes."""
        lasting = self.arguments_bytes + self.outputs_bytes - self.reused_bytes
        return lasting + self.temporary_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the device has as much; None where that is not known."""
        return None if self.device_bytes is None else self.total_bytes <= self.device_bytes

    @property
    def fits_as_usual(self) -> bool | None:
        """Whether it fits in the share of its memory that JAX takes unless told otherwise."""
        if self.device_bytes is None:
            return None
        return self.total_bytes <= USUAL_FRACTION * self.device_bytes

    def record(self) -> dict[str, Any]:
        """The bytes as one JSON-ready dict, without those that are not known."""
        told = {**asdict(self), "total_bytes": self.total_bytes, "fits": self.fits}
        return {name: value for name, value in told.items() if value is not None}


def device_memory(program: Program) -> DeviceMemory | None:
    """What a program's update takes of one device; None where a backend gives no account."""
    stats = program.update.memory_analysis()
    if stats is None:
        return None
    step, hardware = program.step, program.hardware
    mesh, state, specs = step.layout.mesh, step.state, step.state_specs
    init = None if hardware.kind == "described" else program.init_memory
    return DeviceMemory(
        arguments_bytes=stats.argument_size_in_bytes,
        outputs_bytes=stats.output_size_in_bytes,
        reused_bytes=stats.alias_size_in_bytes,
        temporary_bytes=stats.temp_size_in_bytes,
        parameters_bytes=tree_bytes(state.parameters, specs.parameters, mesh),
        optimizer_state_bytes=tree_bytes(state.optimizer, specs.optimizer, mesh),
        model_state_bytes=tree_bytes(state.model_state, specs.model_state, mesh),
        batch_bytes=tree_bytes(dict(step.batch), dict(step.layout.batch), mesh),
        device_bytes=device_memory_bytes(hardware),
        init_peak_bytes=init and init.output_size_in_bytes + init.temp_size_in_bytes,
    )
