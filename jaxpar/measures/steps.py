"""Steps: how long a program's steps take where it runs, measured.

A wall clock on whatever else the machine does: compare such times side by side, in one process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax

from jaxpar.core.errors import expect
from jaxpar.core.figures import seconds_text
from jaxpar.core.kinds import whole
from jaxpar.inference.probe import probe_batch
from jaxpar.measures.record import Make, Measure
from jaxpar.program.record import Program

FIRST = 3
"""Steps that are not counted: the first also loads kernels and allots memory."""

REPEATS = 15


@dataclass(frozen=True)
class Steps:
    """How long steps took.

    Attributes:
        seconds: of each, in order.
        devices: what they ran on, and jax's version.
    """

    seconds: tuple[float, ...]
    devices: str

    def __repr__(self) -> str:
        return f"<Steps {len(self.seconds)} of {seconds_text(self.step_seconds)} on {self.devices}>"

    @property
    def step_seconds(self) -> float:
        """The median."""
        return median(self.seconds)

    def record(self) -> dict[str, Any]:
        """The times as a JSON-ready dict."""
        return {
            "step_seconds": self.step_seconds,
            "least_seconds": min(self.seconds),
            "most_seconds": max(self.seconds),
            "repeats": len(self.seconds),
            "devices": self.devices,
            "pedigree": "measured",
        }


def steps(program: Program, *, repeats: int = REPEATS, seed: int = 0) -> Steps:
    """Run a program's steps on random rows, and time each until its results are there.

    Args:
        program: compiled for devices that are here.
        repeats: how many steps are timed, after a few that are not.
        seed: of the parameters and of the rows.

    Raises:
        RequestError: for a program of described hardware, which cannot run.
    """
    expect("steps' program", program, Program, "jaxpar.compile_step(step, hardware='local')")
    repeats = whole("repeats", repeats, least=1)
    state = program.init(seed)
    batch = program.place(probe_batch(program.step.layout.model, seed))
    found = []
    for _ in range(FIRST + repeats):
        started = time.perf_counter()
        state, metrics = program.update(state, batch)
        jax.block_until_ready((state, metrics))
        found.append(time.perf_counter() - started)
    there, kind = program.step.layout.mesh.devices, jax.devices()[0].device_kind
    return Steps(tuple(found[FIRST:]), f"{there} x {kind}, jax {jax.__version__}")


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """What an experiment gets of a program: the times of its steps."""
    del make
    return steps(program).record()


measure = Measure(_taken, runs=True)
