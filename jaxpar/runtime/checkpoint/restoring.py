"""A checkpoint as the state of a program, whatever layout it was saved under, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding

from jaxpar.core.errors import RequestError, expect
from jaxpar.program.configuration import deliberate
from jaxpar.program.fit import memory_share
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.about import named
from jaxpar.runtime.checkpoint.digest import digests
from jaxpar.runtime.checkpoint.folder import OnDisk, one_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata
from jaxpar.runtime.checkpoint.orbax_reading import sharded_parts
from jaxpar.runtime.checkpoint.own_state import abstract_parts, own_specs, stored_state
from jaxpar.runtime.checkpoint.reading import check_told, refuse_changed
from jaxpar.runtime.checkpoint.replicas import (
    Kept,
    as_there,
    change,
    for_step,
    kept_by,
    kept_in,
)
from jaxpar.runtime.several import first_said
from jaxpar.step.record import State

T = TypeVar("T")


@dataclass(frozen=True)
class Restored:
    """A state read from a checkpoint.

    Attributes:
        state: sharded as the program keeps it.
        metadata: what the checkpoint says of itself.
        folder: where it is.
        notes: a sentence for each newer checkpoint that is damaged, and was passed over; and one
            on replicas of local SGD that are others than those that were saved.
    """

    state: State
    metadata: Metadata
    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> int:
        """Batches that the run has left out until then."""
        return int(self.metadata.data.get("next_batch", self.metadata.step)) - self.metadata.step


def restore(program: Program, path: str | Path) -> Restored:
    """The newest whole checkpoint that a path names, as the state of a program.

    Every array is compared with the digest that was stored with it. The checkpoint may have been
    saved under another mesh, strategy, mode or number of devices, or of replicas of local SGD.

    Args:
        program: compiled for devices that are here.
        path: the folder of a run's checkpoints, or that of one.

    Raises:
        RequestError: when it is of another model or optimizer, or of another version of jaxpar.
            DamagedCheckpoint: when no
            checkpoint there is whole.
    """
    made = "jaxpar.compile_step(step, hardware=...) makes one"
    expect("restore's program", program, Program, made)
    expect("restore's path", path, str | Path, "name a folder of checkpoints")
    program.check_runs()
    notes: list[str] = []
    for one in _found(path):
        try:
            metadata = _by_all("the metadata", one.metadata)
            then = kept_in(metadata.arrays)
            like = as_there(program.step, _own_parts(program), then)
            _check_is_of(program, like, metadata, one)
            _check_fits(program, like, then, metadata, one)
            state = _read(program, one, like, metadata, then)
            notes += change(then, kept_by(program.step))
            return Restored(state, metadata, one.folder, tuple(notes))
        except DamagedCheckpoint as error:
            notes.append(str(error))
    if notes:
        raise DamagedCheckpoint(f"{notes[0]}; no checkpoint in {path} is whole")
    raise RequestError(f"checkpoints {path}: there is none: name the folder of a run's checkpoints")


def _found(path: str | Path) -> list[OnDisk]:
    """The checkpoints that a path names, newest first, as process 0 sees them."""
    there = one_of(path)
    seen = "\n".join(str(one.folder) for one in there) if jax.process_index() == 0 else ""
    folders = first_said("the checkpoints", seen).splitlines()
    return [OnDisk(Path(folder), int(Path(folder).name)) for folder in folders]


def _by_all(what: str, read: Callable[[], T]) -> T:
    """What each process reads, once all of them can read it.

    Raises:
        DamagedCheckpoint: in every process, if one of them cannot; the others would wait for it.
    """
    found, failed = None, ""
    try:
        found = read()
    except DamagedCheckpoint as error:
        failed = str(error)
    if failed := first_said(what, failed):
        raise DamagedCheckpoint(failed)
    assert found is not None
    return found


def _own_parts(program: Program) -> dict[str, Any]:
    """The parts of the program's own checkpoints, as jax.ShapeDtypeStruct with shardings."""
    return jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(program.mesh, spec)
        ),
        abstract_parts(program.step),
        own_specs(program.step),
    )


def _check_is_of(program: Program, like: dict[str, Any], metadata: Metadata, one: OnDisk) -> None:
    """Refuse a checkpoint whose arrays are not those of the program's state."""
    there = {name: (tuple(a["shape"]), a["dtype"]) for name, a in metadata.arrays.items()}
    wanted = {n: (x.shape, str(x.dtype)) for n, x in named(like).items()}
    model = program.step.layout.model.name
    for name in sorted({*there, *wanted}, key=lambda name: (name.startswith("optimizer/"), name)):
        if there.get(name) == wanted.get(name):
            continue
        check_told(one, metadata)  # before another model is blamed for it
        has, wants = (_told(found.get(name)) for found in (there, wanted))
        what, called = "model", metadata.model
        if name.startswith("optimizer/"):
            what, called = "optimizer", metadata.training.get("optimizer", "a person's own")
        raise RequestError(
            f"checkpoint {one.folder}: for '{name}' it has {has}, and model '{model}' with its "
            f"optimizer wants {wants}: use the {what} that it was saved with, '{called}' and its "
            "settings"
        )


def _check_fits(
    program: Program, like: dict[str, Any], then: Kept, metadata: Metadata, one: OnDisk
) -> None:
    """Refuse more replicas than there are, or than a device can read; a file may tell of any."""
    if then != kept_by(program.step):
        check_told(one, metadata)
    leaves = jax.tree.leaves(like)
    taken = sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    has = memory_share(program.hardware, program.step.layout.mesh.devices)
    if then.count and has is not None and taken > has:
        raise RequestError(
            f"checkpoint {one.folder}: it has {then}, {taken / 1e9:,.1f} GB of a device while they "
            f"are read, which has {has / 1e9:,.1f} GB: go on with as many replicas, or on more "
            "devices"
        )


def _told(found: tuple[tuple[int, ...], str] | None) -> str:
    """A shape and dtype in words."""
    return "nothing" if found is None else f"{found[1]} of shape {found[0]}"


def _read(
    program: Program, one: OnDisk, like: dict[str, Any], metadata: Metadata, then: Kept
) -> State:
    """The state that a checkpoint holds, each array checked."""
    step = program.step

    def stored(parts: dict[str, Any]) -> State:
        return stored_state(step, for_step(step, parts, then))

    with deliberate():
        parts = _by_all("the arrays", lambda: sharded_parts(one.folder, like))
        found = digests(named(parts))
        for part in parts:
            refuse_changed(one, metadata, part, found)
        with warnings.catch_warnings():
            # What is stored in pieces is copied; all else stays where it was read to.
            warnings.filterwarnings("ignore", "Some donated buffers were not usable")
            out = program.state_shardings
            return jax.jit(stored, out_shardings=out, donate_argnums=0)(parts)
