"""The Hardware record: what kind of devices a step is compiled for, and XLA's options."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import expect


@dataclass(frozen=True)
class Hardware:
    """Devices to compile for.

    Attributes:
        name: as typed on the command line.
        kind: "simulated" (several devices made of this machine's CPU), "local" (its
            accelerators) or "described" (not here: the program is compiled, never run).
        devices_per_node: how many share the fast links; None when the machine itself knows.
        memory_bytes: of one device; None when the machine itself knows.
        target: XLA's text description of one GPU, for described ones.
        compiler_options: what XLA is told beside it.
        source: where the figures come from.
    """

    name: str
    kind: str
    devices_per_node: int | None = None
    memory_bytes: int | None = None
    target: str | None = None
    compiler_options: Mapping[str, bool | int | str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def of(cls, hardware: "Hardware | str") -> "Hardware":
        """The hardware that a person means: itself, or by its name in the catalogue."""
        if isinstance(hardware, str):
            return HARDWARE.load(hardware)()
        expect("the hardware", hardware, cls, 'give its name, "cpu", "local" or "h100"')
        return hardware
