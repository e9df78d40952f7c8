"""The Measure record: what can be asked of a compiled program, answered as one JSON-ready dict.

An experiment names its measures; `jaxpar.experiment.walk` takes them of every case. Training is no
measure: it runs a program with data, and is the runtime's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxpar.layout.record import Layout
from jaxpar.program.record import Program
from jaxpar.step.record import Step

Make = Callable[[Layout], Step]
"""Makes the step of a layout with the optimizer, mode and microbatches that a case asks for."""


@dataclass(frozen=True)
class Measure:
    """Something that can be asked of a program.

    Attributes:
        take: (program, make) -> what was found, as a JSON-ready dict. `make` makes the step of
            another layout as the program's own was made, for measures that compare with one.
        runs: whether the program is run, so that hardware which is only described has no answer.
    """

    take: Callable[[Program, Make], dict[str, Any]]
    runs: bool
