"""Devices of a mesh shared out among processes: as many each, `model` within one if it fits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape


def device_share(shape: MeshShape, processes: int) -> int:
    """How many devices of a mesh each of several processes has.

    Raises:
        RequestError: for a mesh that cannot be shared out evenly, or of which some groups of the
            innermost axis would be in one process and others in two.
    """
    if shape.devices % processes:
        raise RequestError(
            f"mesh {shape} has {shape.devices} devices, and {processes} processes cannot have "
            f"equally many of them: use a mesh whose devices {processes} divides, or another "
            "number of processes"
        )
    share = shape.devices // processes
    axis, size = shape.sizes[-1]
    if share % size and size % share:
        raise RequestError(
            f"mesh {shape} on {processes} processes: each has {share} devices, and some groups of "
            f"the {size} along '{axis}' would be within a process and others in two: let one of "
            f"{share} and {size} divide the other"
        )
    return share


def shared_out(devices: list[Any], shape: MeshShape) -> list[Any]:
    """The devices of a mesh, outermost axis first: as many of each process, one after another.

    So an axis further in, `model` above all, is within a process, or a node, where it fits, and
    those further out lead from one to another.

    Args:
        devices: of all processes.
        shape: of the mesh.
    """
    by_process = defaultdict(list)
    for device in devices:
        by_process[device.process_index].append(device)
    share = device_share(shape, len(by_process))
    for process, own in by_process.items():
        if len(own) < share:
            raise RequestError(
                f"mesh {shape} on {len(by_process)} processes needs {share} devices of each, and "
                f"process {process} has {len(own)}: use a smaller mesh, or more processes"
            )
    return [device for _, own in sorted(by_process.items()) for device in own[:share]]
