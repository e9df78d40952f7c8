"""A Program: one step compiled for devices, be they fake, here, or only described.

This is the first place where devices exist. A described program can be read but not run.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxpar.complaints import Complaint, compile_listening, compile_quietly
from jaxpar.explicit import Island, mapping
from jaxpar.hardware._record import Hardware
from jaxpar.mesh import MeshShape
from jaxpar.pins import Dropped, watching
from jaxpar.refusal import RequestError
from jaxpar.step import State, Step

QUICK = {"xla_backend_optimization_level": 0}
"""For code run once on fake devices: the same program, machine code in a fifth of the time."""


USUAL_FAKE_DEVICES = 8
MOST_FAKE_DEVICES = 256
"""More would share the CPU's cores so thinly that XLA takes waiting threads for stuck ones."""


@dataclass(frozen=True)
class Made:
    """A compiled update, and what was learned while it was made.

    Attributes:
        update: what JAX made of it.
        complaints: what XLA complained of, now or when it compiled the same program before.
        dropped: what the step asked to lie in pieces and could not.
        islands: operations that explicit mode left to XLA.
        trace_seconds, compile_seconds: wall clock; the latter is short if JAX had kept the program.
    """

    update: Any
    complaints: tuple[Complaint, ...]
    dropped: tuple[Dropped, ...]
    islands: tuple[Island, ...]
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        step: what was compiled.
        hardware: for what.
        mesh: the devices, named.
        for_speed: whether XLA takes its time over code that will run many times.
    """

    step: Step
    hardware: Hardware
    mesh: Mesh
    for_speed: bool = True

    @property
    def update(self) -> Any:
        """The compiled update: (State, batch) -> (State, metrics); the given State is used up."""
        return self.made.update

    @cached_property
    def made(self) -> "Made":
        """The compiled update and what is known of its making."""
        update = jax.jit(
            self.step.update,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(self.state_shardings, None),
            donate_argnums=0,
        )
        started = time.perf_counter()
        with watching() as dropped, mapping() as islands:
            lowered = update.lower(self.step.state, self.step.batch)
        traced = time.perf_counter()
        compiled, said = compile_listening(lowered, lambda: self._compiled(lowered))
        return Made(
            update=compiled,
            complaints=said,
            dropped=tuple(dict.fromkeys(dropped)),
            islands=tuple(dict.fromkeys(islands)),
            trace_seconds=traced - started,
            compile_seconds=time.perf_counter() - traced,
        )

    @cached_property
    def average(self) -> Any:
        """The compiled averaging of copies that train apart: State -> State, the given one used up.

        None where none do.
        """
        if self.step.average is None:
            return None
        average = jax.jit(
            self.step.average,
            in_shardings=(self.state_shardings,),
            out_shardings=self.state_shardings,
            donate_argnums=0,
        )
        return self._compiled(average.lower(self.step.state))

    @cached_property
    def text(self) -> str:
        """The optimized, scheduled HLO module."""
        return self.update.as_text()

    @property
    def state_shardings(self) -> State:
        """Where every array of the state lies."""
        return _on(self.mesh, self.step.state_specs)

    @property
    def gradient_shardings(self) -> dict[str, NamedSharding]:
        """Where every gradient lies once it is summed."""
        return _on(self.mesh, self.step.gradient_specs)

    @property
    def batch_shardings(self) -> dict[str, NamedSharding]:
        """Where every field of a batch lies."""
        return _on(self.mesh, dict(self.step.layout.batch))

    def init(self, seed: int = 0) -> State:
        """A fresh state, created where it will lie: no array is ever whole on one device."""
        return self._create(np.uint32(seed))

    @property
    def init_memory(self) -> Any:
        """XLA's account of one device's memory while the state is created."""
        return self._create.memory_analysis()

    @cached_property
    def _create(self) -> Any:
        def create(seed):
            return self.step.init(jax.random.key(seed))

        seed = jax.ShapeDtypeStruct((), np.uint32)
        return self._quickly(jax.jit(create, out_shardings=self.state_shardings), seed)

    @cached_property
    def evaluate(self) -> Any:
        """Compiled evaluation: (State, batch) -> {name: Mean}."""
        shardings = (self.state_shardings, self.batch_shardings)
        evaluate = jax.jit(self.step.evaluate, in_shardings=shardings)
        lowered = evaluate.lower(self.step.state, self.step.batch)
        # What XLA has to say of this it has said of the update.
        return compile_quietly(lowered.compile)

    @cached_property
    def gradients(self) -> Any:
        """Compiled gradients: (State, batch) -> (gradients, model_state, metrics)."""
        specs = self.step.state_specs
        gradients = jax.jit(
            self.step.gradients,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(
                self.gradient_shardings,
                _on(self.mesh, specs.model_state),
                None,
            ),
        )
        return self._quickly(gradients, self.step.state, self.step.batch)

    @cached_property
    def apply(self) -> Any:
        """Compiled optimizer update: (State, gradients, model_state) -> State."""
        specs, state = self.step.state_specs, self.step.state
        apply = jax.jit(
            self.step.apply,
            in_shardings=_on(self.mesh, (specs, self.step.gradient_specs, specs.model_state)),
            out_shardings=self.state_shardings,
        )
        return self._quickly(apply, state, state.parameters, state.model_state)

    @cached_property
    def local_rows(self) -> slice:
        """Which rows of a batch this process hands in: those that its own devices hold."""
        name, sharding = next(iter(self.batch_shardings.items()))
        shape = self.step.batch[name].shape
        rows = [i[0] for i in sharding.addressable_devices_indices_map(shape).values()]
        return slice(
            min(r.indices(shape[0])[0] for r in rows), max(r.indices(shape[0])[1] for r in rows)
        )

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a batch on the devices; each process hands in only the rows it holds."""
        return {
            name: jax.make_array_from_process_local_data(
                sharding, np.asarray(batch[name]), self.step.batch[name].shape
            )
            for name, sharding in self.batch_shardings.items()
        }

    def _compiled(self, lowered) -> Any:
        """Compile what training runs."""
        quick = QUICK if self.hardware.kind == "fake" and not self.for_speed else {}
        with _kept_unless(self.hardware.kind == "described"):
            return lowered.compile({**self.hardware.compiler_options, **quick} or None)

    def _quickly(self, function, *arguments) -> Any:
        """Compile what runs only a few times."""
        lowered = function.lower(*arguments)
        options = QUICK if self.hardware.kind == "fake" else None
        return compile_quietly(lambda: lowered.compile(options))


def compile_step(step: Step, *, hardware: Hardware, for_speed: bool = True) -> Program:
    """Compile `step` for `hardware`, as many devices as its mesh has.

    Args:
        step: from `make_step`.
        hardware: what to compile for.
        for_speed: False when the program will run only a few times on fake devices; each part of
            it is then compiled when it is first used.

    Raises:
        RequestError: when the machine has fewer devices than the mesh, or cannot compile for them.
    """
    program = Program(step, hardware, device_mesh(step.layout.mesh, hardware), for_speed)
    if for_speed:
        program.update  # noqa: B018  (compiled now, so that what XLA refuses is refused here)
    return program


@contextmanager
def _kept_unless(described: bool) -> Iterator[None]:
    """Keep a program for devices that are not here out of JAX's compilation cache.

    JAX would write it there and then fail to read it back ("PjRtCompiler must be constructed with a
    Client"), with a warning at every later compilation.
    """
    setting = "jax_persistent_cache_min_compile_time_secs"
    usual = getattr(jax.config, setting)
    if described:
        jax.config.update(setting, float("inf"))
    try:
        yield
    finally:
        jax.config.update(setting, usual)


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


def _on(mesh: Mesh, specs: Any) -> Any:
    """NamedShardings on `mesh` for a tree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )
