"""Prove a layout computes what one device computes: verify mlp --strategy tensor --mesh model=8"""

import time

from jaxpar.cli.options import Options
from jaxpar.cli.screen import Screen
from jaxpar.cli.show.layout import show_layout
from jaxpar.cli.show.verdict import show_verdict
from jaxpar.core.mesh import sizes_of
from jaxpar.measures.verify.verify import verify

TAKES = "MODEL"
READS = (
    "strategy",
    "mesh",
    "hardware",
    "mode",
    "steps",
    "batch",
    "microbatches",
    "seed",
    "set",
    "plan",
    "report",
)


def verb(options: Options, screen: Screen) -> int:
    """Verify; exit status 1 when the numbers differ."""
    started = time.perf_counter()
    asked = options.case.resolve()
    with screen.doing("verifying: compiling, then a few steps there and on one device"):
        verdict = verify(
            asked.layout,
            hardware=asked.hardware,
            make=asked.make,
            steps=3 if options.steps is None else options.steps,
            seed=asked.training.seed,
        )
    show_layout(screen, asked.layout, asked.hardware, whole=False)
    show_verdict(screen, verdict)
    screen.finish(
        {
            "model": asked.layout.model.name,
            "strategy": asked.layout.strategy.name,
            "mesh": sizes_of(asked.layout.mesh),
            "devices": asked.layout.mesh.devices,
            "hardware": asked.hardware.name,
            "mode": asked.case.mode,
            **verdict.record(),
            "seconds": time.perf_counter() - started,
        }
    )
    return 0 if verdict.ok else 1
