"""Checkpoints written by Orbax while training goes on: atomic, the last and the best are kept.

A checkpoint appears under its name when all of it is on disk, or not at all. Old ones go only after
the next is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxpar.core.errors import RequestError, words_of
from jaxpar.core.mesh import axes_of
from jaxpar.program.configuration import deliberate
from jaxpar.program.fit import tree_bytes
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.about import CannotSave, named
from jaxpar.runtime.checkpoint.claim import locked, place_of
from jaxpar.runtime.checkpoint.digest import digests
from jaxpar.runtime.checkpoint.folder import METADATA, checkpoints_in
from jaxpar.runtime.checkpoint.library import orbax
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata, OtherFormat
from jaxpar.runtime.checkpoint.own_state import PARTS, own_specs, own_state
from jaxpar.runtime.checkpoint.quiet import left_waiting, quiet, said
from jaxpar.runtime.several import first_said, meet
from jaxpar.step.record import State

DELETED = "deleted"
"""Where old checkpoints are moved before they are deleted, so that one whose deletion is cut short
is none any more."""

LEAST_SECONDS, ALONE_SECONDS = 30, 3600
SLOWEST_BYTES_PER_SECOND = 10e6
"""Of a disk that several processes write to; a slower one is taken for one that hangs."""

BEST = "test_loss"
"""The metric of which the checkpoint with the least is kept."""


class Saver:
    """Writes the checkpoints of one run: the one thing here that changes is the folder."""

    def __init__(self, program: Program, folder: str | Path, *, keep: int, about: Metadata):
        """For states of a program.

        Args:
            program: whose states are saved.
            folder: of this run's checkpoints alone.
            keep: how many of the newest stay, beside the one with the least test loss.
            about: what every checkpoint of the run says of itself.
        """
        self.program, self.about = program, about
        self.folder = place_of(folder)
        self._closing = ExitStack()
        self._closing.enter_context(_locked_by_one(self.folder))
        self._closing.enter_context(quiet(self.folder))
        ocp = orbax()
        policies = [ocp.checkpoint_managers.LatestN(keep), _best()]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            todelete_subdir=DELETED,
            async_options=ocp.options.AsyncOptions(
                # Else threads wait ten minutes, at the process's end, for one that cannot be made.
                create_directories_asynchronously=False,
                timeout_secs=_patience_seconds(program),
            ),
        )
        try:
            writers = {part: _writer(program) for part in PARTS}
            self.manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers={**writers, METADATA: ocp.JsonCheckpointHandler()},
            )
        except OSError as error:
            self._closing.close()
            raise RequestError(
                f"checkpoints {self.folder}: cannot write there ({words_of(error)}); name another "
                "folder"
            ) from error

    def _delete_old(self) -> None:
        """Delete what was moved away; the folder itself stays, for more may be on its way."""
        if jax.process_index() == 0:
            with suppress(FileNotFoundError):
                for one in (self.folder / DELETED).iterdir():
                    shutil.rmtree(one, ignore_errors=True)

    @cached_property
    def specs(self) -> dict[str, Any]:
        """Name -> the PartitionSpec of each array of a checkpoint."""
        return named(own_specs(self.program.step))

    @cached_property
    def _own(self) -> Any:
        """The compiled function from a state to the parts of a checkpoint."""
        step, mesh = self.program.step, self.program.mesh
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, spec),
            own_specs(step),
            is_leaf=lambda x: isinstance(x, jax.P),
        )
        return jax.jit(partial(own_state, step), out_shardings=shardings)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole on disk."""
        for one in checkpoints_in(self.folder):
            with suppress(DamagedCheckpoint, OtherFormat):
                one.metadata()
                return one.folder
        return None

    def save(
        self, state: State, step: int, metrics: Mapping[str, float], *, left_out: int = 0
    ) -> None:
        """Begin to write a checkpoint; training may go on, and use the state up.

        Args:
            state: to be saved.
            step: updates done.
            metrics: of the last update, and of the last test as `test_...`.
            left_out: batches that the run has left out, so that the next is so many further on.

        Raises:
            CannotSave: when this one, or the one before it, cannot be written.
        """
        with deliberate(), told(self.folder):
            parts = self._own(state)
            arrays = named(parts)
            found = digests(arrays)
            about = replace(
                self.about,
                step=step,
                metrics={name: float(value) for name, value in metrics.items()},
                data={**self.about.data, "next_batch": step + left_out},
                arrays={
                    name: {
                        "shape": list(x.shape),
                        "dtype": str(x.dtype),
                        "bytes": x.nbytes,
                        "sharded": [list(axes_of(entry)) for entry in self.specs[name]],
                        "digest": found[name],
                    }
                    for name, x in arrays.items()
                },
            )
            self._make_way(step)
            self._delete_old()
            ocp = orbax()
            items: dict[str, Any] = {
                name: ocp.args.PyTreeSave(part) for name, part in parts.items() if part
            }
            items[METADATA] = ocp.args.JsonSave(about.record())
            best = {BEST: metrics[BEST]} if BEST in metrics else None
            self.manager.save(step, args=ocp.args.Composite(**items), metrics=best, force=True)

    def wait(self) -> None:
        """Return when what is being written is whole.

        Raises:
            CannotSave: when it cannot be written.
        """
        with told(self.folder):
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and write no more."""
        try:
            with told(self.folder):
                self.manager.close()
                self._delete_old()
        finally:
            self._closing.close()

    def _make_way(self, step: int) -> None:
        """Move away a checkpoint of this step, a damaged one or one that the run went back from."""
        there = self.folder / str(step)
        if os.path.lexists(there):
            self.manager.wait_until_finished()
            if jax.process_index() == 0:
                aside = there.with_name(f"{step}.replaced")
                if aside.is_dir() and not aside.is_symlink():
                    shutil.rmtree(aside)
                else:
                    aside.unlink(missing_ok=True)
                there.rename(aside)
            meet()
            self.manager.reload()


def _patience_seconds(program: Program) -> int:
    """How long a save may take, and a process wait for the others of it.

    A process whose disk is full gives up at once, and Orbax does not tell those that wait for it.
    """
    if jax.process_count() == 1:
        return ALONE_SECONDS
    state, specs = program.step.state, program.step.state_specs
    share = tree_bytes(state, specs, program.step.layout.mesh) * len(jax.local_devices())
    return LEAST_SECONDS + round(share / SLOWEST_BYTES_PER_SECOND)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Within, whatever keeps a checkpoint from being written is one sentence."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # Orbax, TensorStore and the system each have their own
        left_waiting.set()
        raise CannotSave(f"checkpoints {folder}: cannot write there ({said(error)})") from error


@contextmanager
def _locked_by_one(folder: Path) -> Iterator[None]:
    """Within, the folder is this run's: process 0 locks it, and all are refused if it cannot."""
    with ExitStack() as closing:
        refused = ""
        try:
            if jax.process_index() == 0:
                closing.enter_context(locked(folder))
        except RequestError as error:
            refused = str(error)
        if refused := first_said("the lock of the checkpoints", refused):
            raise RequestError(refused)
        yield


def _writer(program: Program) -> Any:
    """What writes a tree of arrays.

    Orbax lets copies of a replicated array each write a slice. Simulated devices share one memory,
    and making the slices compiles a program for each shape.
    """
    handlers = orbax().type_handlers
    arrays = handlers.ArrayHandler(use_replica_parallel=program.hardware.kind != "simulated")
    registry = handlers.create_type_handler_registry((jax.Array, arrays))
    return orbax().PyTreeCheckpointHandler(type_handler_registry=registry)


def _best() -> Any:
    """Keeps the checkpoint with the least test loss."""
    return orbax().checkpoint_managers.BestN(
        get_metric_fn=lambda metrics: metrics[BEST],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
