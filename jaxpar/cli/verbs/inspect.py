"""Read the program: collectives, memory: inspect llama3_8b --mesh data=8,model=8 --hardware h100"""

import time

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.measures.inspect import inspect


def verb(options: Options, screen: Screen) -> int:
    """Inspect; exit status 1 when the program breaks what its strategy states."""
    started = time.perf_counter()
    asked = options.case.resolve()
    inspection = inspect(asked.compile(), is_strict=options.lint == "error")
    screen.layout(asked.layout, asked.hardware.name)
    screen.dims(asked.layout)
    screen.traffic(inspection)
    screen.islands(inspection.islands)
    screen.lint(inspection.lint, strict=inspection.is_strict)
    screen.schedule(inspection)
    screen.memory(inspection, asked.hardware)
    screen.finish({**inspection.record(), "seconds": time.perf_counter() - started})
    return 0 if inspection.ok else 1
