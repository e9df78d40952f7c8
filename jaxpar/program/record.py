"""A Program: one step compiled for devices, be they simulated, here, or only described.

This is the first place where devices exist. A described program can be read but not run.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxpar.core.errors import expect, one_line
from jaxpar.core.kinds import MOST, whole
from jaxpar.hardware.record import Hardware
from jaxpar.jaxprs.equations import refuse_overflow
from jaxpar.program.assembler import without_machine_code
from jaxpar.program.compiled import Made, compiled
from jaxpar.program.configuration import deliberate, refuse_settings, uncached
from jaxpar.program.devices import device_mesh, refuse_described, sharded_on
from jaxpar.program.dumps import Dumps, dumped, no_dumps
from jaxpar.program.fit import refuse_too_large
from jaxpar.program.given import Ready, Takes, as_array
from jaxpar.program.in_parts import check_parts
from jaxpar.program.out_of_memory import memory_told
from jaxpar.program.quick import FEW_PASSES, QUICK
from jaxpar.program.rows import put_rows, rows_here
from jaxpar.program.warnings import compile_quietly, compile_with_warnings
from jaxpar.step.make_step import make_step
from jaxpar.step.record import State, Step


@dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
        step: what was compiled.
        hardware: for what.
        mesh: the devices, named.
        for_speed: whether XLA takes its time over code that will run many times.
        explains: whether XLA writes down what it makes of it, as it always does for described
            hardware; it is compiled even if JAX has it in its compilation cache.
    """

    step: Step
    hardware: Hardware
    mesh: Mesh
    for_speed: bool = True
    explains: bool = False

    def __repr__(self) -> str:
        layout = self.step.layout
        made_for = f"{layout.mesh.devices:,} x {self.hardware.name}, mode {self.step.mode}"
        return one_line(f"<Program {layout.title}: for {made_for}>")

    def _repr_html_(self) -> str:
        return self.step._repr_html_()

    @cached_property
    def update(self) -> Ready:
        """The compiled update: (State, batch) -> (State, metrics); the given State is used up."""
        return Ready(self.made.update, self.takes)

    @cached_property
    def takes(self) -> Takes:
        """What the functions of the program take."""
        step, shardings = self.step, (self.state_shardings, self.batch_shardings)
        arrays = (step.state, step.batch)
        return Takes(step.layout.model, self.hardware, *arrays, *shardings, step.is_wide)

    @cached_property
    def lowered(self) -> Any:
        """The update lowered for the program's devices, not yet compiled."""
        traced = self.step.traced

        def update(state, batch):
            return traced(state, batch)

        jitted = jax.jit(
            update,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(self.state_shardings, None),
            donate_argnums=0,
        )
        return self._lowered(jitted, self.step.state, self.step.batch)

    @cached_property
    def made(self) -> "Made":
        """The compiled update and what is known of its making."""
        started = time.perf_counter()
        lowered = self.lowered
        # Of a described program, which no cache keeps, XLA's own account costs nothing more.
        with (
            dumped("jit_update")
            if self.explains or self.hardware.is_described
            else no_dumps() as dumps
        ):
            compiled, warnings = compile_with_warnings(
                lowered, lambda: self._compiled(lowered, dumps.options)
            )
        return Made(compiled, warnings, time.perf_counter() - started, dumps)

    @cached_property
    def average(self) -> Ready | None:
        """The compiled synchronisation of replicas: State -> State, the given one used up.

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
        compiled = self._compiled(self._lowered(average, self.step.state))
        return Ready(compiled, self.takes, reads_batch=False)

    @cached_property
    def text(self) -> str:
        """The optimized, scheduled HLO module."""
        return self.update.as_text()

    @cached_property
    def dumps(self) -> Dumps:
        """What XLA wrote down as it compiled the update; else it is compiled again, for that."""
        if self.made.dumps.partitioned:
            return self.made.dumps
        with dumped("jit_update") as dumps:
            compile_quietly(lambda: self._compiled(self.lowered, dumps.options))
        return dumps

    @property
    def state_shardings(self) -> State:
        """The sharding of every array of the state."""
        return sharded_on(self.mesh, self.step.state_specs)

    @property
    def gradient_shardings(self) -> dict[str, NamedSharding]:
        """The sharding of every gradient once it is summed."""
        return sharded_on(self.mesh, self.step.gradient_specs)

    @property
    def batch_shardings(self) -> dict[str, NamedSharding]:
        """The sharding of every field of a batch."""
        return sharded_on(self.mesh, dict(self.step.layout.batch))

    def init(self, seed: int = 0) -> State:
        """A fresh state, created sharded: no device ever has more of an array than its shard.

        Raises:
            RequestError: for devices that are only described, or a state that this machine's
                memory cannot hold.
        """
        number = whole("seed", seed, most=MOST)
        refuse_settings()
        self.check_runs()
        with deliberate(), memory_told(self.step.layout.model.name, self.hardware):
            return self._create(np.uint32(number))

    def check_runs(self) -> None:
        """Refuse to run where there is nothing to run it, or not the memory; see `init`.

        What it takes is XLA's account once the update is compiled, and until then its shards.
        """
        refuse_described(self.hardware)
        made = vars(self).get("made")
        refuse_too_large(self.step, self.hardware, made and made.update.memory_analysis())

    @property
    def init_memory(self) -> Any:
        """XLA's account of one device's memory while the state is created."""
        return self._create.memory_analysis()

    @cached_property
    def _create(self) -> Any:
        """The compiled `seed -> State`, sharded as it is made."""

        def create(seed):
            return self.step.init(jax.random.key(seed))

        seed = jax.ShapeDtypeStruct((), np.uint32)
        return self._quickly(jax.jit(create, out_shardings=self.state_shardings), seed)

    @cached_property
    def evaluate(self) -> Ready:
        """Compiled evaluation: (State, batch) -> {name: Mean}."""
        shardings = (self.state_shardings, self.batch_shardings)
        evaluate = jax.jit(self.step.evaluate, in_shardings=shardings)
        lowered = self._lowered(evaluate, self.step.state, self.step.batch)
        # XLA's warnings about this are those about the update.
        return Ready(compile_quietly(lambda: self._asked(lowered, None)), self.takes)

    @cached_property
    def gradients(self) -> Ready:
        """Compiled gradients: (State, batch) -> (gradients, model_state, metrics)."""
        model_state = sharded_on(self.mesh, self.step.state_specs.model_state)
        gradients = jax.jit(
            self.step.gradients,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(self.gradient_shardings, model_state, None),
        )
        return Ready(self._quickly(gradients, self.step.state, self.step.batch), self.takes)

    @cached_property
    def probe(self) -> Ready:
        """The compiled update with its gradients: (State, batch) -> (State, metrics, gradients)."""
        shardings = sharded_on(self.mesh, self.step.probe_specs)
        probe = jax.jit(
            self.step.probe,
            in_shardings=(self.state_shardings, self.batch_shardings),
            out_shardings=(self.state_shardings, None, shardings),
        )
        return Ready(self._quickly(probe, self.step.state, self.step.batch), self.takes)

    @cached_property
    def _resized(self) -> dict[int, "Program"]:
        """The programs of other numbers of rows that were made of this one."""
        return {self.step.layout.model.batch_size: self}

    def with_rows(self, rows: int) -> "Program":
        """The program of the same layout for batches of so many rows, to evaluate them; kept."""
        rows = whole("rows", rows, least=1)
        if rows not in self._resized:
            layout = self.step.layout.with_rows(rows)
            step = make_step(layout, optimizer=self.step.optimizer, mode=self.step.mode)
            self._resized[rows] = replace(self, step=step, for_speed=False)
        return self._resized[rows]

    @cached_property
    def local_rows(self) -> slice:
        """Which rows of a batch this process hands in: those that its own devices hold."""
        name, sharding = next(iter(self.batch_shardings.items()))
        return rows_here(self.step.batch[name].shape, sharding)

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put a batch on the devices; each process hands in only the rows it holds.

        Raises:
            RequestError: for a batch without the fields that the model reads, as it reads them.
        """
        refuse_described(self.hardware)
        expect("the batch", batch, Mapping, "give arrays by the names of the model's fields")
        placed = {}
        for name, sharding in self.batch_shardings.items():
            rows, *more = self.step.batch[name].shape
            values = as_array(batch.get(name))
            self.takes.check_field(name, values, (len(range(rows)[self.local_rows]), *more))
            with jax.enable_x64(self.step.is_wide):
                placed[name] = put_rows(values, self.local_rows, self.step.batch[name], sharding)
        return placed

    def _compiled(self, lowered, more: Mapping[str, Any] | None = None) -> Any:
        """The compiled form of a lowered function, as training runs it; `more` are options."""
        runs_often = self.for_speed or self.hardware.kind != "simulated"
        quick = QUICK if self.hardware.is_described or not runs_often else {}
        usual = without_machine_code() if self.hardware.is_described else {}
        with uncached() if self.hardware.is_described else nullcontext():
            options = {**usual, **self.hardware.compiler_options, **quick, **(more or {})}
            return self._asked(lowered, options or None)

    def _lowered(self, jitted: Any, *arguments: Any) -> Any:
        """A function lowered for abstract arguments, its arrays of sizes that XLA can count."""
        with jax.enable_x64(self.step.is_wide):
            traced = jitted.trace(*arguments)
            refuse_overflow(self.step.layout.model.name, traced.jaxpr)
            return traced.lower()

    def _asked(self, lowered: Any, options: Mapping[str, Any] | None) -> Any:
        """What XLA makes of a lowered function; what it refuses is told in its words."""
        return compiled(lowered, options, self.step.layout.model.name, self.hardware.name)

    def _quickly(self, function, *arguments) -> Any:
        """Compile what runs only a few times."""
        lowered = self._lowered(function, *arguments)
        options = {**QUICK, **FEW_PASSES} if self.hardware.kind == "simulated" else None
        return compile_quietly(lambda: self._asked(lowered, options))


def compile_step(
    step: Step, *, hardware: Hardware | str, for_speed: bool = True, explains: bool = False
) -> Program:
    """Compile `step` for `hardware`, as many devices as its mesh has.

    Args:
        step: from `make_step`.
        hardware: what to compile for, a record or its name in the catalogue.
        for_speed: False when the program will run only a few times on simulated devices; each
            part of it is then compiled when it is first used.
        explains: whether `jaxpar.measures.explain` will be asked of it: it is compiled once then.

    Raises:
        RequestError: when the machine has fewer devices than the mesh, or cannot compile for them;
            or when a model's loss is another one in microbatches.
    """
    expect("compile_step's step", step, Step, "jaxpar.make_step(layout) makes one of a Layout")
    hardware = Hardware.of(hardware).placed(step.layout.mesh.devices)
    refuse_settings()
    mesh = device_mesh(step.layout.mesh, hardware)
    program = Program(step, hardware, mesh, for_speed, explains)
    if hardware.kind != "described":
        check_parts(step, hardware)
    if for_speed:
        program.update  # noqa: B018  (compiled now, so that what XLA refuses is refused here)
    return program
