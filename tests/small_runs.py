"""Small runs that are saved, for tests that do harm to them."""

from dataclasses import replace

from small import small_layout

from jaxpar.core.catalogue import DATA
from jaxpar.data.record import Dataset
from jaxpar.hardware.cpu import hardware as cpu
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step


def perceptron(training: Training, **sizes) -> Program:
    """A small perceptron on four devices, its weights sharded."""
    layout = small_layout("mlp", "fsdp", "data=4", batch=16, **sizes)
    step = make_step(layout, optimizer=optimizer_of(training, layout))
    return compile_step(step, hardware=cpu(), for_speed=False)


def untested(name: str, **options) -> Dataset:
    """Data of the catalogue without its test split, which takes longer than a small run."""
    return replace(DATA.load(name)(**options), walk=None, test_size=None)
