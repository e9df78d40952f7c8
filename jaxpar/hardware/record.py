"""The Hardware record: what kind of devices a step is compiled for, their rates, XLA's options."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError, expect, unknown
from jaxpar.core.kinds import whole
from jaxpar.hardware.presets import preset_options

XLA = "xla."
"""What the names of XLA's own options begin with among the fields of a case."""

PRESET = XLA + "preset"
"""The field that names a preset of them."""

MOST_BYTES = 1 << 60
"""More memory than any device has."""

KINDS = ("simulated", "local", "described")


@dataclass(frozen=True)
class Rates:
    """What a device can do at most, as its maker publishes it: time that follows is a lower bound.

    Attributes:
        flops_per_second: dtype of a product's operands -> multiply-adds times two in a second,
            without sparsity.
        link_bytes_per_second: to and from the other devices of its node, each way.
        network_bytes_per_second: its share of the node's network, each way.
        memory_bytes_per_second: read from and written to its own memory.
        source: where the figures are published.
    """

    flops_per_second: Mapping[str, float]
    link_bytes_per_second: float
    network_bytes_per_second: float
    memory_bytes_per_second: float
    source: str


@dataclass(frozen=True)
class Reached:
    """What programs reach of the published rates, as measured.

    Attributes:
        tables: the device of `jaxpar.hardware.measured` whose tables tell how a rate grows with
            size; of another device than this, its rates are taken as shares of its peaks.
        products: best share of the peak rate that a product of bfloat16 reaches.
        sustained: share of a product's rate alone that is left in a step that lasts, at the clock
            that the power limit then allows.
        memory: share of the memory's rate.
        network: kind of a collective -> share of the network's rate that the largest reach.
        network_seconds: from one node to the next, of a small message.
        launch_seconds: least time of a kernel.
        crowding: how much longer work takes while a collective runs beside it.
        slowest: how much longer work takes on the slowest device, which sets the pace, than on the
            mean one that tables tell of.
        usable: share of the memory that a training program can have.
        source: where the figures were measured.
        guessed: by what share the rate of products may be off beside what tables are, where its
            best or the clock under load is a guess; predictions have wider intervals for it.
    """

    tables: str
    products: float
    sustained: float
    memory: float
    network: Mapping[str, float]
    network_seconds: float
    launch_seconds: float
    crowding: float
    slowest: float
    usable: float
    source: str
    guessed: float = 0.0


@dataclass(frozen=True)
class Hardware:
    """Devices to compile for.

    Attributes:
        name: as typed on the command line.
        kind: "simulated" (several devices made of this machine's CPU), "local" (its
            accelerators) or "described" (not here: the program is compiled, never run).
        devices_per_node: how many share the fast links at most; None when the machine itself knows.
        memory_bytes: of one device; None when the machine itself knows.
        target: XLA's text description of one GPU, for described ones.
        compiler_options: what XLA is told beside it.
        source: where the figures come from.
        rates: what is published of its speed, or None.
        reached: what is measured of it, or None; with `rates`, time can be predicted.
    """

    name: str
    kind: str
    devices_per_node: int | None = None
    memory_bytes: int | None = None
    target: str | None = None
    compiler_options: Mapping[str, bool | int | str] = field(default_factory=dict)
    source: str = ""
    rates: Rates | None = None
    reached: Reached | None = None

    def __post_init__(self):
        expect("the name of hardware", self.name, str, "give a word")
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise unknown("kind of hardware", self.kind, KINDS)
        for name in ("devices_per_node", "memory_bytes"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least=1, most=MOST_BYTES)
        expect("the target of hardware", self.target, str | None, "give XLA's text of a GPU")
        expect("XLA's options of hardware", self.compiler_options, Mapping, "give them by name")
        expect("the rates of hardware", self.rates, Rates | None, "give a Rates, or None")
        expect("what hardware reaches", self.reached, Reached | None, "give a Reached, or None")

    def placed(self, devices: int) -> "Hardware":
        """The same for so many devices: in the fewest nodes that hold them, in each as many.

        Where that does not divide, all nodes but the last are full.
        """
        node = self.devices_per_node
        if not node or devices <= node or devices % node == 0:
            return self
        each, left = divmod(devices, ceil(devices / node))
        return self if left else replace(self, devices_per_node=each)

    @property
    def is_described(self) -> bool:
        """Whether its devices are not here, so that a program is compiled and never run."""
        return self.kind == "described"

    def with_options(self, told: Mapping[str, Any]) -> "Hardware":
        """The same hardware, XLA told more, or otherwise than it is usually told.

        Args:
            told: by `xla.NAME`, where NAME may leave out "xla_"; "preset" is several at once, see
                `jaxpar.hardware.presets`, before what else is told.

        Raises:
            RequestError: a value that is no number, word, true or false; an unknown preset.
        """
        options, told = dict(self.compiler_options), dict(told)
        if PRESET in told:
            options |= preset_options(told.pop(PRESET))
        for name, value in told.items():
            if not isinstance(value, bool | int | str):
                raise RequestError(f"{name}={value}: give XLA a number, a word, true or false")
            options[f"xla_{name.removeprefix(XLA).removeprefix('xla_')}"] = value
        return replace(self, compiler_options=options)

    @classmethod
    def of(cls, hardware: "Hardware | str") -> "Hardware":
        """The hardware that a person means: itself, or by its name in the catalogue."""
        if isinstance(hardware, str):
            return HARDWARE.load(hardware)()
        expect("the hardware", hardware, cls, 'give its name, "cpu", "local" or "h100"')
        return hardware
