"""Verify: does a layout compute what one device computes, array by array, replica by replica?"""

from typing import Any

from jaxpar.measures.record import Make, Measure
from jaxpar.measures.verify import verify as comparison
from jaxpar.program.record import Program


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """What an experiment gets of a program: the verdict on its layout."""
    layout, hardware = program.step.layout, program.hardware
    return comparison.verify(layout, hardware=hardware, make=make).record()


measure = Measure(_taken, runs=True)
