"""What a run that goes on from a checkpoint has in common with the one that saved it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxpar.core.errors import RequestError
from jaxpar.data.record import Dataset
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.about import about_run
from jaxpar.runtime.checkpoint.metadata import Metadata
from jaxpar.runtime.training import Training

SURROUNDS = ("evaluate_every", "save_every", "keep", "on_nan")
"""Fields of training that change nothing of what is computed."""


def differences(
    saved: Metadata, program: Program, data: Dataset, training: Training
) -> tuple[str, ...]:
    """What a run does otherwise than the one that saved a checkpoint, a sentence each.

    Raises:
        RequestError: for another seed, or other data: its losses would be no continuation.
    """
    now = about_run(program, data, training)
    if saved.training and saved.training.get("seed") != training.seed:
        raise RequestError(
            f"the checkpoint of step {saved.step} was trained with seed "
            f"{saved.training.get('seed')}, and seed {training.seed} gives other batches: use "
            f"--seed {saved.training.get('seed')}"
        )
    for what in ("name", "fields"):
        if what in saved.data and saved.data[what] != now.data[what]:
            raise RequestError(
                f"the checkpoint of step {saved.step} was trained on data "
                f"'{saved.data.get('name')}' with {_fields(saved.data)}, and this is "
                f"'{data.name}' with {_fields(now.data)}: use the same"
            )
    prints = saved.data.get("fingerprint"), data.fingerprint
    if all(prints) and prints[0] != prints[1]:
        raise RequestError(
            f"the checkpoint of step {saved.step} was trained on '{data.name}' with {prints[0]}, "
            f"and it has {prints[1]} now: train on the file as it was"
        )
    return tuple(_notes(saved, now))


def _notes(saved: Metadata, now: Metadata) -> Iterator[str]:
    """A sentence on the layout, on training and on versions, for what is not as it was."""
    for what, before, after in (
        ("layout", saved.layout, now.layout),
        ("training", saved.training, now.training),
        ("versions", saved.versions, now.versions),
    ):
        changes = [
            f"{name} {before[name]} -> {after[name]}"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name] and name not in SURROUNDS
        ]
        if changes:
            yield f"{what} since the checkpoint of step {saved.step}: {', '.join(changes)}"
    if saved.layout.get("batch") != now.layout["batch"]:
        yield "batches of another size have other rows: some may be read twice, others not"


def _fields(data: Any) -> str:
    """The fields of data in words."""
    return ", ".join(f"{name} {kind} {shape}" for name, (shape, kind) in data["fields"].items())
