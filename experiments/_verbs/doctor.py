"""Say what works on this machine: versions, devices, the described-GPU compiler."""

import importlib.metadata
import platform

from experiments._options import Options
from experiments._screen import Screen
from jaxpar.catalogue import HARDWARE, MODELS, STRATEGIES
from jaxpar.layout import lay_out
from jaxpar.mesh import MeshShape
from jaxpar.program import compile_step, device_mesh
from jaxpar.refusal import RequestError
from jaxpar.step import make_step


def verb(options: Options, screen: Screen) -> int:
    """Try each kind of hardware with a small step; exit status 1 only if fake devices fail."""
    del options
    record = {"python": platform.python_version(), "hardware": {}}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "jax-cuda13-plugin"):
        try:
            record[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record[package] = None
    screen.say(
        ", ".join(f"{k} {v or 'not installed'}" for k, v in record.items() if k != "hardware")
    )
    for name in HARDWARE.names():
        record["hardware"][name] = works = _try(name)
        screen.say(f"  {name:<8} {works['says']}", style="green" if works["ok"] else "yellow")
    screen.finish(record)
    return 0 if record["hardware"]["cpu"]["ok"] else 1


def _try(name: str) -> dict:
    hardware = HARDWARE.load(name)()
    local = hardware.kind == "local"
    mesh = MeshShape(data=1) if local else MeshShape(data=4, model=2)
    strategy = STRATEGIES.load("single" if local else "hybrid")()
    try:
        if local:
            device_mesh(mesh, hardware)
        step = make_step(lay_out(MODELS.load("mlp")(), strategy=strategy, mesh=mesh))
        program = compile_step(step, hardware=hardware)
    except RequestError as error:
        return {"ok": False, "says": str(error)}
    kind = program.mesh.devices.flat[0].device_kind
    return {"ok": True, "says": f"compiles and, if present, runs ({mesh.devices} x {kind})"}
