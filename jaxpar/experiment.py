"""An experiment: a question as a value, and the walk through its cases that answers it as rows.

A case that cannot be laid out is a row that holds its refusal; any other exception is a bug and
flies. A claim is a sentence with a test on the rows, and says how many rows it needs, since "all
of none" is true.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpar.case import Case, Resolved
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import sizes_of
from jaxpar.measures.inspect import inspect
from jaxpar.measures.memory import held
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import Program
from jaxpar.runtime.train import train

Row = Mapping[str, Any]
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Claim:
    """A sentence, and the test of it: `holds(rows)` over at least `needs` rows not refused."""

    sentence: str
    holds: Callable[[Rows], bool]
    needs: int

    def check(self, rows: Rows) -> bool:
        """Whether it holds; with too few rows it does not."""
        walked = tuple(row for row in rows if "refusal" not in row)
        return len(walked) >= self.needs and bool(self.holds(walked))


@dataclass(frozen=True)
class Experiment:
    """A question: cases to walk, what to measure of each, and what is claimed of the answer.

    Attributes:
        cases: what to try.
        measures: of train, inspect, verify and held, those to take.
        claims: what a machine checks of the rows.
        columns: entries of a row worth showing, in order; dots reach into records.
    """

    cases: tuple[Case, ...]
    measures: tuple[str, ...]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ()


def walk(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Measure every case in turn; yields its row as soon as it is known."""
    for case in experiment.cases:
        row: dict[str, Any] = {
            "model": case.model,
            "strategy": case.strategy,
            "hardware": case.hardware,
            "mode": case.mode,
        }
        try:
            resolved = case.resolve()
        except LayoutError as refusal:
            yield row | {"mesh": case.mesh, "refusal": str(refusal)}
            continue
        layout = resolved.layout
        row |= {
            "mesh": sizes_of(layout.mesh),
            "devices": layout.mesh.devices,
            "batch": layout.model.batch_size,
            "parameter_bytes": layout.parameter_bytes,
            "parameter_bytes_per_device": layout.parameter_device_bytes,
        }
        program = resolved.compile(for_speed="train" in experiment.measures)
        for name in experiment.measures:
            if name not in RUNNING or resolved.hardware.kind != "described":
                row[name] = MEASURES[name](resolved, program)
        yield row


def _trained(resolved: Resolved, program: Program) -> dict[str, Any]:
    losses: list[float] = []

    def watch(step: int, metrics: dict[str, float]) -> None:
        del step
        if "loss" in metrics:
            losses.append(metrics["loss"])

    outcome = train(program, resolved.load_data(), resolved.training, watch=watch)
    return {**outcome.record(), "losses": losses}


def _inspected(resolved: Resolved, program: Program) -> dict[str, Any]:
    del resolved
    return inspect(program).record()


def _verified(resolved: Resolved, program: Program) -> dict[str, Any]:
    del program
    return verify(resolved.layout, hardware=resolved.hardware, make=resolved.make).record()


def _held(resolved: Resolved, program: Program) -> dict[str, Any]:
    del resolved
    return held(program).record()


MEASURES = {"train": _trained, "inspect": _inspected, "verify": _verified, "held": _held}
RUNNING = ("train", "verify", "held")
"""Those that run the program, and so are not taken of hardware that is only described."""


def said(row: Row, kind: str | None = None, axis: str | None = None) -> float:
    """Bytes that one step of an inspected row puts into collectives of `kind` over `axis`.

    Those of an averaging are shared among the updates that it comes after.
    """

    def of(collectives) -> int:
        return sum(
            c["bytes"]
            for c in collectives
            if kind in (None, c["kind"]) and (axis is None or axis in c["axes"])
        )

    every, update = row["inspect"]["averaging_every"], of(row["inspect"]["collectives"])
    return update + of(row["inspect"]["averaging_collectives"]) / every if every else update


def same_losses(rows: Rows) -> bool:
    """Whether trained rows went through the losses of the first, step by step, to 1e-4.

    Sums in another order moved them by 9.6e-7 at most in float32: perceptron, 60 steps of AdamW,
    one to eight simulated devices, jax 0.10.2.
    """
    first = rows[0]["train"]["losses"]
    return all(
        abs(a - b) <= 1e-4 * abs(b)
        for row in rows[1:]
        for a, b in zip(row["train"]["losses"], first, strict=True)
    )
