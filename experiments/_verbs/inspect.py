"""Read the program: collectives, memory: inspect llama3_8b --mesh data=8,model=8 --hardware h100"""

import time

from experiments._options import Options
from experiments._screen import Screen
from jaxpar.measures.inspect import inspect


def verb(options: Options, screen: Screen) -> int:
    """Inspect; exit status 1 when the program breaks what its strategy states."""
    started = time.perf_counter()
    asked = options.case.resolve()
    inspection = inspect(asked.compile())
    screen.layout(asked.layout, asked.hardware.name)
    screen.traffic(inspection)
    if inspection.memory:
        total, temporary = (inspection.memory[n] / 1e9 for n in ("total_bytes", "temporary_bytes"))
        screen.say(f"memory of one device: {total:,.2f} GB, of which {temporary:,.2f} GB temporary")
        room = asked.hardware.memory_bytes
        if room and inspection.memory["total_bytes"] > room:
            screen.say(
                f"that is more than the {room / 1e9:,.1f} GB of an {asked.hardware.name}: use more "
                "devices, a smaller --batch, or --set remat=full",
                style="red",
            )
    screen.finish({**inspection.record(), "seconds": time.perf_counter() - started})
    return 0 if inspection.ok else 1
