"""Devices for a mesh: simulated ones made of this CPU, this machine's own, or described ones."""

import logging
from pathlib import Path

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.record import Hardware

USUAL_FAKE_DEVICES = 8


MOST_FAKE_DEVICES = 256
"""More would share the CPU's cores so thinly that XLA takes waiting threads for stuck ones."""


def device_mesh(shape: MeshShape, hardware: Hardware) -> Mesh:
    """Devices of `hardware` in the shape of a mesh, outermost axis first."""
    find = {"fake": _fake_devices, "local": _local_devices, "described": _described_devices}
    devices = find[hardware.kind](shape, hardware)
    sizes = tuple(size for _, size in shape.sizes)
    return Mesh(
        np.asarray(devices[: shape.devices]).reshape(sizes),
        shape.axes,
        axis_types=(AxisType.Auto,) * len(sizes),
    )


def prefer_cpu() -> None:
    """Tell JAX, before it looks for devices, that only the CPU is wanted in this process.

    Without an accelerator this also keeps a GPU plugin that is installed for its compiler alone
    from complaining that it finds no driver.
    """
    jax.config.update("jax_platforms", "cpu")


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA device, found without starting JAX."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/nvidia0").exists()


def _fake_devices(shape: MeshShape, hardware: Hardware):
    del hardware
    if shape.devices > MOST_FAKE_DEVICES:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, and this machine's CPU is made into at "
            f"most {MOST_FAKE_DEVICES}: use a smaller mesh, or --hardware h100, which compiles for "
            "any number and runs on none"
        )
    # A notebook's next mesh may be larger, and JAX cannot add devices later.
    ask_for_devices(max(shape.devices, USUAL_FAKE_DEVICES))
    devices = jax.devices("cpu")
    if len(devices) < shape.devices:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, but JAX already started with "
            f"{len(devices)} CPU devices and cannot add any: restart Python and call "
            f"jax.config.update('jax_num_cpu_devices', {shape.devices}) first, or use a "
            "smaller mesh"
        )
    return devices


def ask_for_devices(count: int) -> None:
    """Ask JAX for `count` fake CPU devices, where it still can; never for fewer than before."""
    asked = getattr(jax.config, "jax_num_cpu_devices", -1)
    if asked >= count:
        return
    try:
        if not has_gpu() and not jax.config.jax_platforms:
            prefer_cpu()
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        # JAX has started: what it has is what there is, and the caller counts it.
        logging.getLogger(__name__).debug("JAX already started")


def _local_devices(shape: MeshShape, hardware: Hardware):
    del hardware
    if not has_gpu() and not jax.config.jax_platforms:
        prefer_cpu()
    devices = jax.devices()
    if devices[0].platform == "cpu":
        raise RequestError(
            "hardware 'local' means this machine's accelerators, and JAX finds none here: use "
            "--hardware cpu for fake devices, or --hardware h100 to compile for described ones"
        )
    if len(devices) < shape.devices:
        raise RequestError(
            f"mesh {shape} needs {shape.devices} devices, but this machine has {len(devices)} "
            f"({devices[0].device_kind}): use a mesh of {len(devices)}, or --hardware cpu"
        )
    return devices


def _described_devices(shape: MeshShape, hardware: Hardware):
    if not has_gpu() and not jax.config.jax_platforms:
        prefer_cpu()
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
