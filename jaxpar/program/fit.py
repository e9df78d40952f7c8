"""Whether a step fits the memory of its devices: by its shards, and by XLA's account of it.

Before compilation it is known what a step takes at least; after it, what it takes.
"""

import os
import resource
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import process_and_count
from jaxpar.core.mesh import MeshShape, axes_of
from jaxpar.core.progress import here
from jaxpar.hardware.record import Hardware
from jaxpar.layout.record import itemsize
from jaxpar.program.devices import local_devices
from jaxpar.step.record import Step


def device_bytes(leaf: Any, spec: PartitionSpec, mesh: MeshShape) -> int:
    """Bytes of an array on each device of a mesh."""
    ways = prod(mesh.size(axis) for entry in spec for axis in axes_of(entry))
    return prod(leaf.shape) * itemsize(leaf.dtype) // ways


def tree_bytes(arrays: Any, specs: Any, mesh: MeshShape) -> int:
    """Bytes of a tree of arrays on each device of a mesh."""
    told = jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    pairs = zip(jax.tree.leaves(arrays), told, strict=True)
    return sum(device_bytes(leaf, spec, mesh) for leaf, spec in pairs)


def least_bytes(step: Step) -> int:
    """Bytes of a device that a step takes at least: state, batch, and gradients that add up.

    With one microbatch XLA may free a gradient before it has made the next, so none is counted.
    """
    mesh = step.layout.mesh
    lasting = tree_bytes(step.state, step.state_specs, mesh)
    batch = tree_bytes(dict(step.batch), dict(step.layout.batch), mesh)
    if step.microbatches == 1:
        return lasting + batch
    return lasting + batch + tree_bytes(step.state.parameters, step.gradient_specs, mesh)


def taken_bytes(stats: Any) -> int:
    """Bytes of a device that a compiled program takes, by XLA's account of its memory."""
    lasting = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return lasting + stats.temp_size_in_bytes


def device_memory_bytes(hardware: Hardware) -> int | None:
    """Bytes that each device of a hardware has by itself; None where that is not known.

    Simulated devices have none of their own. Of local ones it is what JAX may take; starts JAX.
    """
    if hardware.memory_bytes is not None or hardware.kind != "local":
        return hardware.memory_bytes
    mine = [d for d in local_devices(hardware) if d.process_index == process_and_count()[0]]
    found = [(device.memory_stats() or {}).get("bytes_limit") for device in mine]
    return min((n for n in found if n), default=None)


def memory_share(hardware: Hardware, devices: int) -> int | None:
    """Bytes that each of so many devices has, simulated ones by shares of this machine's."""
    if hardware.kind == "simulated" and hardware.memory_bytes is None:
        return machine_bytes() // here.sharing // max(1, devices // process_and_count()[1])
    return device_memory_bytes(hardware)


def refuse_too_large(step: Step, hardware: Hardware, stats: Any | None = None) -> None:
    """Refuse to run a step that its devices have not the memory for.

    Simulated devices share this machine's memory, and a process that takes more is ended by its
    system, in the middle and without a word.

    Args:
        step: it need not be compiled.
        hardware: what it is to run on.
        stats: XLA's account of the compiled step, where there is one.

    Raises:
        RequestError: saying how much it takes, and how much there is.
    """
    devices = step.layout.mesh.devices
    taken = least_bytes(step) if stats is None else taken_bytes(stats)
    has = memory_share(hardware, devices)
    if has is None or taken <= has:
        return
    if stats is None:
        what = "its optimizer state and a batch take"
    else:
        what = "its optimizer state, a batch and what a step computes take"
    repair = "use smaller sizes, a smaller batch, more microbatches or another layout"
    if hardware.kind == "simulated" and hardware.memory_bytes is None:
        simulated = here.sharing * max(1, devices // process_and_count()[1])
        taken *= simulated
        told = f"{taken / 1e9:,.1f} GB on {simulated} simulated devices, and this machine has"
        there = f"{machine_bytes() / 1e9:,.1f} GB"
    else:
        told = f"{taken / 1e9:,.1f} GB of a device, and one of hardware '{hardware.name}' has"
        there = f"{has / 1e9:,.1f} GB"
    raise RequestError(
        f"model '{step.layout.model.name}', {what} {told} {there}: {repair}; 'inspect' reads a "
        "program of any size"
    )


def machine_bytes() -> int:
    """How much memory this machine has, or this process or its container if that is less."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        found.append(most)
    with suppress(OSError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit.isdigit():
            found.append(int(limit))
    return min(found)
