"""Say what works on this machine, or what a model was understood to be: doctor my.module:factory"""

import importlib.metadata
import platform

from jaxpar.case import load_model
from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.layout import show_dims
from jaxpar.core.catalogue import HARDWARE, MODELS, STRATEGIES
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.dims import dims_of_layout
from jaxpar.models.record import Model
from jaxpar.program.devices import device_mesh
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

TAKES = "[MODEL]"
READS = ()


def verb(options: Options, screen: Screen) -> int:
    """Look at a model, if one is named, else at this machine."""
    return _model(options, screen) if options.words else _machine(screen)


def _model(options: Options, screen: Screen) -> int:
    """Say what a model was understood to be, and which strategies shard it; nothing is compiled."""
    model = load_model(options.words[0])
    alone = lay_out(model, strategy=STRATEGIES.load("single")(), mesh=MeshShape())
    started = {
        "model": model.name,
        "parameters": sum(a.size for a in alone.parameters.values()),
        "parameter_bytes": alone.parameter_bytes,
        "state": {path: list(a.shape) for path, a in alone.state.items()},
        "batch": {
            name: {"shape": list(f.shape), "dtype": f.dtype, "dims": list(f.dims), "below": f.below}
            for name, f in model.batch.items()
        },
        "dims": dims_of_layout(alone),
        "notes": list(model.notes),
    }
    screen.say(
        f"{model.name}: {started['parameters']:,} parameters in {len(alone.parameters)} arrays, "
        f"{len(alone.state)} arrays of other state"
    )
    for name, field in started["batch"].items():
        ids = f", ids below {field['below']}" if field["below"] else ""
        screen.say(f"  batch {name}: {field['dtype']} {' x '.join(map(str, field['shape']))}{ids}")
    show_dims(screen, alone)
    for note in model.notes:
        screen.say(f"note: {note}")
    started["strategies"] = {name: _fit(model, name) for name in STRATEGIES.names()}
    for name, fit in started["strategies"].items():
        says = fit["mesh"] if fit["ok"] else fit["says"]
        screen.say(f"  {name:<10} {says}", style="green" if fit["ok"] else "yellow")
    screen.finish(started)
    return 0


def _fit(model: Model, name: str) -> dict:
    """Whether a strategy can shard a model two ways."""
    strategy = STRATEGIES.load(name)()
    axes = set(strategy.axes) | {a for a in _AXES if getattr(strategy, _AXES[a])}
    mesh = MeshShape(**{axis: 2 for axis in sorted(axes)})
    try:
        lay_out(model, strategy=strategy, mesh=mesh)
    except RequestError as error:
        return {"ok": False, "mesh": str(mesh), "says": str(error)}
    return {"ok": True, "mesh": str(mesh), "says": ""}


_AXES = {"pipe": "stages", "replica": "averaging"}
"""Mesh axes that a strategy uses by other means than a table."""


def _machine(screen: Screen) -> int:
    """Try each kind of hardware with a small step; exit status 1 only if simulated devices fail."""
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
    """Whether a small step compiles for a hardware of the catalogue, and for what devices."""
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
