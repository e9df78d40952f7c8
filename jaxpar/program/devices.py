"""Devices for a mesh: simulated ones made of this CPU, this machine's own, or described ones."""

from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.extend.backend import backends
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import process_and_count
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.record import Hardware
from jaxpar.program.configuration import quiet_start, simulate_devices
from jaxpar.program.shares import device_share, shared_out

USUAL_SIMULATED_DEVICES = 8
"""A notebook's next mesh may be larger than its first."""

MOST_SIMULATED_DEVICES = 256
"""More would share the CPU's cores so thinly that XLA takes waiting threads for stuck ones."""


def device_mesh(shape: MeshShape, hardware: Hardware) -> Mesh:
    """Devices of `hardware` in the shape of a mesh, outermost axis first.

    Of several processes each has as many, those of the first one first.

    Raises:
        RequestError: when there are too few, or none, or JAX cannot start.
    """
    prepare(shape, hardware)
    find = {"simulated": _simulated, "local": _local, "described": _described}[hardware.kind]
    with quiet_start():
        devices = find(shape, hardware)
    if hardware.kind != "described" and process_and_count()[1] > 1:
        devices = shared_out(devices, shape)
    sizes = tuple(size for _, size in shape.sizes)
    return Mesh(
        np.asarray(devices[: shape.devices]).reshape(sizes),
        shape.axes,
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def prepare(shape: MeshShape, hardware: Hardware) -> None:
    """Let JAX start with the simulated devices that this mesh needs, or that a later one may.

    To be called before anything starts JAX, which cannot add devices later; for any hardware, since
    what is asked for next may be simulated.
    """
    needed = shape.devices if hardware.kind == "simulated" else 0
    if process_and_count()[1] > 1:
        return simulate_devices(device_share(shape, process_and_count()[1]))
    simulate_devices(min(max(needed, USUAL_SIMULATED_DEVICES), MOST_SIMULATED_DEVICES))


def _simulated(shape: MeshShape, hardware: Hardware) -> list[Any]:
    """The CPU devices that JAX has started with, or starts with now."""
    if shape.devices > MOST_SIMULATED_DEVICES:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, and this machine's CPU is made into at "
            f"most {MOST_SIMULATED_DEVICES}: use a smaller mesh, or --hardware h100, which "
            "compiles for any number and runs on none"
        )
    devices = _devices(hardware, "cpu")
    if len(devices) < shape.devices:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, but JAX already started with "
            f"{len(devices)} CPU devices and cannot add any: restart Python (of a notebook "
            f"the kernel) and call jax.config.update('jax_num_cpu_devices', {shape.devices}) at "
            "the top, or use a smaller mesh"
        )
    return devices


def _local(shape: MeshShape, hardware: Hardware) -> list[Any]:
    """This machine's accelerators, of whatever platform JAX finds."""
    devices = _devices(hardware)
    if devices[0].platform == "cpu":  # what JAX prefers, which may be what a person chose
        others = [name for name in backends() if name != "cpu"]
        devices = _devices(hardware, others[0]) if others else []
    if not devices:
        raise RequestError(
            "hardware 'local' means this machine's accelerators, and JAX finds none here: use "
            "--hardware cpu for simulated CPU devices, or --hardware h100 to compile for "
            "described ones"
        )
    if len(devices) < shape.devices:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, but this machine has {len(devices)} "
            f"({devices[0].device_kind}): use a mesh of {len(devices)}, or --hardware cpu"
        )
    return devices


def _devices(hardware: Hardware, platform: str | None = None) -> list[Any]:
    """JAX's devices of a platform, or of the one that it prefers; starts JAX."""
    try:
        return jax.devices(platform)
    except (RuntimeError, AssertionError) as error:  # JAX asserts that there is a platform
        which = f"the platform '{platform}'" if platform else "its platforms"
        why = str(error) or "it finds none of those in JAX_PLATFORMS"
        raise RequestError(
            f"hardware '{hardware.name}' needs JAX to start {which}, and it cannot ({why}): "
            "unset JAX_PLATFORMS, or let it name what is here"
        ) from error


def local_devices(hardware: Hardware) -> list[Any]:
    """The devices of local hardware, in all processes; starts JAX."""
    with quiet_start():
        return _local(MeshShape(), hardware)


def _described(shape: MeshShape, hardware: Hardware) -> list[Any]:
    """Devices that are not here, as XLA's GPU compiler knows them from a text."""
    node = min(hardware.devices_per_node or 1, shape.devices)
    if shape.devices % node:
        node = 1
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name=hardware.name,
            topology=f"1x{shape.devices // node}x{node}",
            target_config=hardware.target,
        )
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"hardware '{hardware.name}' is described, not present, and compiling for it needs "
            f"XLA's GPU compiler: pip install 'jax[cuda13-local]' on Linux ({error})"
        ) from error
    return topology.devices


def refuse_described(hardware: Hardware) -> None:
    """Refuse to run anything on devices that are not here."""
    if hardware.kind == "described":
        raise RequestError(
            f"hardware '{hardware.name}' is described, not present, so nothing can run on it: use "
            "hardware cpu or local"
        )


def sharded_on(mesh: Mesh, specs: Any) -> Any:
    """NamedShardings on `mesh` for a tree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )
