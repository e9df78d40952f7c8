"""Held: bytes of parameters, gradients and moments that really lie on one device, arrays counted.

A layout says where arrays should lie, and a compiled program what it reserves; this makes them on
the devices and adds up the pieces found there.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax

from jaxpar.measures.verify.probe import probe_batch
from jaxpar.program.record import Program


@dataclass(frozen=True)
class Held:
    """Bytes on the device that holds most of each.

    Attributes:
        parameter_bytes: of the parameters between steps.
        gradient_bytes: of the summed gradients, as they are kept while microbatches add up.
        moment_bytes: of the optimizer's arrays; scalars, such as its count of updates, aside.
    """

    parameter_bytes: int
    gradient_bytes: int
    moment_bytes: int

    @property
    def total_bytes(self) -> int:
        """All three."""
        return self.parameter_bytes + self.gradient_bytes + self.moment_bytes

    def record(self) -> dict:
        """What is held, as one JSON-ready dict."""
        return {**asdict(self), "total_bytes": self.total_bytes}


def held(program: Program, *, seed: int = 0) -> Held:
    """Make a state and its gradients on the program's devices, and count.

    Args:
        program: compiled for devices that are here.
        seed: of the parameters and of the batch.
    """
    state = program.init(seed)
    batch = program.place(probe_batch(program.step.layout.model, seed))
    gradients, _, _ = program.gradients(state, batch)
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    return Held(device_bytes(state.parameters), device_bytes(gradients), device_bytes(moments))


def device_bytes(arrays: Any) -> int:
    """Bytes of a tree of arrays on the device of this process that holds most of them."""
    on: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(arrays):
        for shard in leaf.addressable_shards:
            on[shard.device] = on.get(shard.device, 0) + shard.data.nbytes
    return max(on.values())
