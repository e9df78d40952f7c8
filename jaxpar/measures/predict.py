"""Predict: how long a step takes on hardware that is not here, from the program compiled for it.

The scheduled program is replayed against measured rates (`jaxpar.costs`). Nothing runs, and no
constant is fitted to whole training runs: `python -m experiments run published` says how far the
result is from published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from jaxpar.core.errors import RequestError, expect, one_line
from jaxpar.core.figures import bytes_text, seconds_text
from jaxpar.core.mesh import sizes_of
from jaxpar.costs.rates import Device
from jaxpar.costs.replay import Replay, replay
from jaxpar.hlo.parse import parse
from jaxpar.measures.exposed import Exposed, exposed_of
from jaxpar.measures.record import Make, Measure
from jaxpar.measures.work import work
from jaxpar.program.fit import memory_share
from jaxpar.program.record import Program
from jaxpar.report.notebook import notebook_html

HOURS = 3600.0
LIKELY = 0.8
"""Share of measured steps that the interval is meant to hold."""

SPREAD = {"product": 0.06, "attention": 0.15, "memory": 0.2, "bubble": 0.1}
"""Relative errors of the seconds of each kind of work, such that `LIKELY` are within: what tables
differ by between sources (products 753 and 780 TFLOP/s; attention by cuDNN's version; copies and
reductions 70 to 90 % of the memory's rate)."""

SPREAD_EXPOSED = 0.5
"""The same of what is exposed: schedules and networks differ most."""

SPREAD_DEVICES = 0.04
"""And of the whole: GPUs of one node differ by 5 %, and the slowest sets the pace."""


@dataclass(frozen=True)
class Prediction:
    """How long one step takes, and what it consists of; predicted, of one device.

    Attributes:
        program: what was replayed.
        replay: its schedule in time.
        step_seconds: one step.
        low_seconds, high_seconds: between which `LIKELY` of measured steps are meant to be.
        work_seconds: of "product", "attention" and "memory" (all else that touches memory).
        crowded_seconds: by how much collectives beside it made work longer.
        communication_seconds: of all collectives, one after the other.
        averaging_seconds: of a synchronisation of replicas, its share in one step.
        exposed: collectives for which a step waits, the longest first.
        peak_bytes: of memory, as XLA allots it.
        fits: whether that is within what a training program can have.
        flops_per_device: of the model, each product once, all scores of attention counted.
        compile_seconds: how long the program took to make.
    """

    program: Program
    replay: Replay
    step_seconds: float
    low_seconds: float
    high_seconds: float
    work_seconds: Mapping[str, float]
    crowded_seconds: float
    communication_seconds: float
    averaging_seconds: float
    exposed: tuple[Exposed, ...]
    peak_bytes: int
    fits: bool
    flops_per_device: float
    compile_seconds: float

    def __repr__(self) -> str:
        layout, fits = self.program.step.layout, "fits" if self.fits else "does not fit"
        return one_line(
            f"<Prediction {layout.title} on {self.program.hardware.name}: a step of "
            f"{seconds_text(self.step_seconds)}, {seconds_text(self.low_seconds)} to "
            f"{seconds_text(self.high_seconds)}; MFU {self.mfu:.1%}; "
            f"{bytes_text(self.peak_bytes)} at the peak, {fits}>"
        )

    def _repr_html_(self) -> str:
        return notebook_html({"kind": "predict", **self.record()})

    @property
    def exposed_seconds(self) -> float:
        """Of collectives, while nothing is computed."""
        return self.replay.exposed_seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Of all devices; None for a model without a sequence."""
        tokens = work(self.program.step).tokens
        return tokens / self.step_seconds if tokens else None

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: `flops_per_device` in a step over the peaks of their dtypes."""
        counted, rates = work(self.program.step), self.program.hardware.rates
        assert rates is not None
        least = sum(
            n / counted.sharing / rates.flops_per_second[d] for d, n in counted.flops.items()
        )
        return least / self.step_seconds

    def cost(self, price: float | None) -> dict[str, float]:
        """What a step and a billion tokens cost, where `price` is that of a device for an hour.

        Empty where no price is given.
        """
        if price is None:
            return {}
        step = price * self.program.step.layout.mesh.devices * self.step_seconds / HOURS
        tokens = work(self.program.step).tokens
        more = {"cost_per_billion_tokens": 1e9 * step / tokens} if tokens else {}
        return {"cost_per_step": step, **more}

    def record(self) -> dict[str, Any]:
        """The prediction as one JSON-ready dict."""
        layout = self.program.step.layout
        rows, tokens = layout.model.batch_size, self.tokens_per_second
        devices = layout.mesh.devices
        return {
            "model": layout.model.name,
            "strategy": layout.strategy.name,
            "mesh": sizes_of(layout.mesh),
            "devices": devices,
            "hardware": self.program.hardware.name,
            "batch": rows,
            "step_seconds": self.step_seconds,
            "low_seconds": self.low_seconds,
            "high_seconds": self.high_seconds,
            "interval": LIKELY,
            "rows_per_second": rows / self.step_seconds,
            "tokens_per_second": tokens,
            "tokens_per_second_per_device": tokens and tokens / devices,
            "flops_per_device": self.flops_per_device,
            "mfu": self.mfu,
            "mfu_counts": "model FLOPs, recomputation left out, all scores of attention counted, "
            "over the peaks of their dtypes",
            "work_seconds": dict(self.work_seconds),
            "crowded_seconds": self.crowded_seconds,
            "communication_seconds": self.communication_seconds,
            "averaging_seconds": self.averaging_seconds,
            "exposed_seconds": self.exposed_seconds,
            "exposed": [{**asdict(one), "axes": list(one.axes)} for one in self.exposed],
            "peak_bytes": self.peak_bytes,
            "memory_bytes": memory_share(self.program.hardware, devices),
            "fits": self.fits,
            "compile_seconds": self.compile_seconds,
            "pedigree": "predicted",
        }


def is_predictable(program: Program) -> bool:
    """Whether the speed of a program's hardware is known."""
    return program.hardware.rates is not None and program.hardware.reached is not None


def predict(program: Program, *, explains: bool = True) -> Prediction:
    """How long a step of a program takes on the hardware that it was compiled for; nothing is run.

    Args:
        program: compiled for described hardware, or for devices here that were measured.
        explains: whether exposed collectives are to say what they move, where XLA wrote that down:
            of described programs, and of those compiled with `explains=True`. It takes a tenth of
            compiling at most for most programs, a seventh for pipelines.

    Raises:
        RequestError: for hardware whose speed is not known.
    """
    expect(
        "predict's program", program, Program, "jaxpar.compile_step(step, hardware='h100') makes it"
    )
    device = Device(program.hardware)
    module = parse(program.text)
    one = replay(module, device)
    averaging = 0.0
    if program.average is not None:
        every = program.step.layout.strategy.averaging
        meeting = replay(parse(program.average.as_text()), device)
        averaging = meeting.seconds / every.every if every and every.every else 0.0
    seconds = one.seconds + averaging
    spread = _spread(one, seconds, device.reached.guessed)
    stats = program.update.memory_analysis()
    peak = stats.peak_memory_in_bytes
    memory = memory_share(program.hardware, program.step.layout.mesh.devices)
    usable = device.reached.usable * (memory or 0)
    return Prediction(
        program=program,
        replay=one,
        step_seconds=seconds,
        low_seconds=seconds / (1 + spread),
        high_seconds=seconds * (1 + spread),
        work_seconds=one.work_seconds,
        crowded_seconds=one.crowded_seconds,
        communication_seconds=one.communication_seconds,
        averaging_seconds=averaging,
        exposed=exposed_of(program, one, device, explains),
        peak_bytes=peak,
        fits=peak <= usable,
        flops_per_device=work(program.step).device_flops,
        compile_seconds=program.made.compile_seconds,
    )


def _spread(one: Replay, seconds: float, guessed: float) -> float:
    """The relative error within which `LIKELY` are meant to be: errors of parts, independent.

    `guessed` is what the rates of products and of attention may be off beside their tables.
    """
    parts = [one.work_seconds[kind] * share for kind, share in SPREAD.items()]
    parts.append(guessed * (one.work_seconds["product"] + one.work_seconds["attention"]))
    parts += [SPREAD_EXPOSED * one.exposed_seconds, SPREAD_DEVICES * seconds]
    return sqrt(sum(part * part for part in parts)) / seconds if seconds else 0.0


def _taken(program: Program, make: Make) -> dict[str, Any]:
    """The record of a program's prediction; why there is none where no speed is known."""
    del make
    try:
        return predict(program).record()
    except RequestError as refusal:
        return {"refusal": str(refusal)}


measure = Measure(_taken, runs=False)
