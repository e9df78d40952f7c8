"""The test split: every example counted once, also those of a last batch that is smaller."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpar.core.errors import RequestError, expect
from jaxpar.data.record import Batch, Dataset
from jaxpar.inference.traced import traced_loss
from jaxpar.models.record import Mean
from jaxpar.program.in_parts import InParts, in_parts
from jaxpar.program.out_of_memory import memory_told
from jaxpar.program.record import Program
from jaxpar.runtime.reading import check_data, read_test
from jaxpar.step.record import State


def evaluate(program: Program, state: State, data: Dataset) -> dict[str, float]:
    """Means over the whole test split, each example counted once.

    A loss that takes weights leaves the padding of the last batch out by itself; for any other the
    last batch is evaluated with as many rows as it has.
    """
    made = "jaxpar.compile_step(step, hardware=...) makes one"
    expect("evaluate's program", program, Program, made)
    model = program.step.layout.model
    check_data(model, data)
    program.takes.check_state(state)
    weighs = "weight" in model.batch
    found: dict[str, Mean] = {}
    for rows in read_test(data, model, rows=program.local_rows if weighs else slice(None)):
        for runs, part, share in [(program, rows, 1.0)] if weighs else _whole(program, rows):
            with memory_told(model.name, program.hardware):
                means = jax.device_get(runs.evaluate(state, runs.place(part)))
            means = jax.tree.map(lambda x, share=share: share * np.float64(x), means)
            found = jax.tree.map(np.add, found, means) if found else means
    if not all(mean.weight for mean in found.values()) or not found:
        raise RequestError(
            f"data '{data.name}': the weights of its test split add up to 0, so it has no mean: "
            "give weight 1 to what counts"
        )
    means = {name: float(mean.value) for name, mean in found.items()}
    # A loss with other terms reports the next token's by that name.
    return means | bits(means.get("next_token", means["loss"]), data)


def evaluation_notes(program: Program, data: Dataset) -> tuple[str, ...]:
    """What a person should know of a test, a sentence each."""
    model = program.step.layout.model
    notes = list(traced_loss(model, train=False).says)
    several = len(list(zip(read_test(data, model, rows=slice(0, 1)), range(2), strict=False))) > 1
    found = in_parts(model, program.hardware) if several else InParts()
    over = f"over its batches of {model.batch_size} rows"
    if found.reason:
        notes.append(f"{found.reason}: the loss of the test split is the mean {over}")
    if found.metrics:
        notes.append(f"{_no_means(found.metrics)} of the test split the mean {over}")
    return tuple(notes)


def training_notes(program: Program) -> tuple[str, ...]:
    """What a person should know of the metrics of a step, a sentence each."""
    parts = program.step.microbatches
    found = in_parts(program.step.layout.model, program.hardware) if parts > 1 else InParts()
    if not found.metrics:
        return ()
    return (f"{_no_means(found.metrics)} of a step the mean over its {parts} microbatches",)


def _no_means(metrics: Sequence[str]) -> str:
    """The beginning of a sentence about metrics that are no means over rows."""
    names = ", ".join(f"'{name}'" for name in metrics)
    if len(metrics) == 1:
        return f"metric {names} is no mean over rows: it is"
    return f"metrics {names} are no means over rows: they are"


def bits(loss: float, data: Dataset) -> dict[str, float]:
    """A token loss in nats as bits: per byte where a token is a byte, else per token."""
    if data.unit != "tokens":
        return {}
    return {"bits_per_byte" if data.vocabulary == 256 else "bits_per_token": loss / math.log(2)}


def _whole(program: Program, rows: Batch) -> Iterator[tuple[Program, Mapping[str, Any], float]]:
    """A padded batch as parts without padding: (what evaluates it, its rows here, its share).

    Rows that do not divide among the devices are each repeated as often as there are shares.
    """
    weight = np.asarray(rows["weight"])
    count = int(weight.reshape(len(weight), -1).any(axis=1).sum())
    shares = program.step.layout.row_shares
    even = count - count % shares
    if even:
        yield _part(program, rows, np.arange(even), 1.0)
    if even < count:
        yield _part(program, rows, np.repeat(np.arange(even, count), shares), 1 / shares)


def _part(program: Program, rows: Batch, chosen: np.ndarray, share: float):
    """These rows of a batch, those that this process holds, and the program of as many."""
    runs = program.with_rows(len(chosen))
    here = chosen[runs.local_rows]
    return runs, {name: np.asarray(value)[here] for name, value in rows.items()}, share
