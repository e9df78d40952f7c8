"""Memory: bytes of parameters, gradients and optimizer state on one device, live arrays counted.

A layout says how arrays should be sharded, and a compiled program what it reserves; this makes them
on the devices and adds up the shards found there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxpar.inference.probe import probe_batch
from jaxpar.measures.record import Make, Measure
from jaxpar.program.record import Program


@dataclass(frozen=True)
class StateMemory:
    """Bytes on the device that has most of each.

    Attributes:
        parameter_bytes: of the parameters between steps.
        gradient_bytes: of the summed gradients, as they are kept while microbatches add up.
        optimizer_state_bytes: of the optimizer's arrays; scalars, such as its count of updates,
            aside.
    """

    parameter_bytes: int
    gradient_bytes: int
    optimizer_state_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of parameters, gradients and optimizer state together."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_state_bytes

    def record(self) -> dict:
        """The bytes of each and of all, as one JSON-ready dict."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def memory(program: Program, *, seed: int = 0) -> StateMemory:
    """Make a state and its gradients on the program's devices, and count.

    Args:
        program: compiled for devices that are here.
        seed: of the parameters and of the batch.
    """
    state = program.init(seed)
    batch = program.place(probe_batch(program.step.layout.model, seed))
    gradients, _, _ = program.gradients(state, batch)
    arrays = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    return StateMemory(
        device_bytes(state.parameters), device_bytes(gradients), device_bytes(arrays)
    )


def device_bytes(arrays: Any) -> int:
    """Bytes of a tree of arrays on the device of this process that has most of them."""
    on: dict[Any, int] = {}  # by device
    for leaf in jax.tree.leaves(arrays):
        for shard in leaf.addressable_shards:
            on[shard.device] = on.get(shard.device, 0) + shard.data.nbytes
    return max(on.values(), default=0)


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """What an experiment gets of a program: the bytes counted in it."""
    del make
    return memory(program).record()


measure = Measure(_taken, runs=True)
