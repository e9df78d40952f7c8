"""An experiment: a question as a value, and the walk through its cases that answers it as rows.

A case that cannot be laid out is a row that holds its refusal; any other exception is a bug and
flies. A claim is a sentence with a test on the rows, and says how many rows it needs, since "all
of none" is true.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpar.case import Case, Resolved
from jaxpar.core.catalogue import MEASURES
from jaxpar.core.errors import LayoutError, expect
from jaxpar.core.mesh import sizes_of
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
        measures: catalogue names of those to take; each is an entry of the row under its name.
        claims: what a machine checks of the rows.
        columns: entries of a row worth showing, in order; dots reach into records.
        trains: whether each case is trained as well, which is the row's entry `train`.
        adds: (number of the case, its row) -> entries beside what was measured, such as figures
            that others published of the same case.
        remarks: (rows) -> sentences to end with.
    """

    cases: tuple[Case, ...]
    measures: tuple[str, ...]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = ()
    trains: bool = False
    adds: Callable[[int, Row], Mapping[str, Any]] | None = None
    remarks: Callable[[Rows], Iterable[str]] | None = None

    def __post_init__(self):
        for name in ("cases", "measures", "claims", "columns"):
            expect(f"an experiment's {name}", getattr(self, name), tuple, "give a tuple of them")
        for case in self.cases:
            expect("a case of an experiment", case, Case, "jaxpar.Case(model, ...) makes one")


def walk(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Train and measure every case in turn; yields its row as soon as it is known.

    Nothing is run for hardware that is only described: a row has no `train` then, and none of the
    measures that run a program.

    Raises:
        RequestError: for a measure that does not exist.
    """
    expect("walk's experiment", experiment, Experiment, "jaxpar.Experiment(...) makes one")
    measures = {name: MEASURES.load(name) for name in experiment.measures}
    for number, case in enumerate(experiment.cases):
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
        runs = resolved.hardware.kind != "described"
        program = resolved.compile(for_speed=experiment.trains)
        if experiment.trains and runs:
            row["train"] = _trained(resolved, program)
        for name, measure in measures.items():
            if runs or not measure.runs:
                row[name] = measure.take(program, resolved.make)
        if experiment.adds is not None:
            row |= experiment.adds(number, row)
        yield row


def _trained(resolved: Resolved, program: Program) -> dict[str, Any]:
    """The record of training a case, with the loss of every step."""
    losses: list[float] = []

    def watch(step: int, metrics: dict[str, float]) -> None:
        del step
        if "loss" in metrics:
            losses.append(metrics["loss"])

    outcome = train(program, resolved.load_data(), resolved.training, watch=watch)
    return {**outcome.record(), "losses": losses}


def communication_bytes(row: Row, kind: str | None = None, axis: str | None = None) -> float:
    """Bytes per device that an inspected row has in collectives of `kind` over `axis`, per step.

    None is every kind, and every axis. The bytes of a synchronisation of replicas are shared among
    the updates that it comes after.
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
