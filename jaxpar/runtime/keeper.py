"""When a run is saved, and what becomes of one that cannot be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from jaxpar.data.record import Dataset
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.about import CannotSave, about_run
from jaxpar.runtime.checkpoint.saving import Saver
from jaxpar.runtime.training import Training
from jaxpar.step.record import State

_LOG = logging.getLogger(__name__)


class Keeper:
    """Saves the states of one run: every so many steps, and the last.

    A checkpoint that cannot be written is told at once, and training goes on: the next may succeed.
    Only the last has to be written.
    """

    def __init__(self, program: Program, data: Dataset, training: Training, folder: str | Path):
        """For a run whose checkpoints go to `folder`; a folder that cannot be made is refused."""
        about = about_run(program, data, training)
        self.saver = Saver(program, folder, keep=training.keep, about=about)
        self.every = training.save_every
        self.saved: int | None = None
        """The step of the newest checkpoint that was begun."""
        self.notes: list[str] = []

    def is_due(self, done: int) -> bool:
        """Whether a state after so many updates is to be saved, the last apart."""
        return bool(self.every) and done % self.every == 0

    def save(self, state: State, done: int, metrics: Mapping[str, float], left_out: int) -> None:
        """Begin to save a state, unless it is saved already."""
        if self.saved == done:
            return
        try:
            self.saver.save(state, done, metrics, left_out=left_out)
            self.saved = done
        except CannotSave as error:
            self._not_saved(error)

    def finish(self, state: State, done: int, metrics: Mapping[str, float], left_out: int) -> None:
        """Save the last state, and wait until it is whole.

        Raises:
            CannotSave: when it cannot be written, which is tried twice.
        """
        self.save(state, done, metrics, left_out)
        try:
            self.saver.wait()
        except CannotSave as error:
            self._not_saved(error)
            self.saved = None
        if self.saved != done:
            self.saver.save(state, done, metrics, left_out=left_out)
            self.saver.wait()
            self.saved = done

    def wait(self) -> None:
        """Return when what is being written is whole, or is told not to be."""
        try:
            self.saver.wait()
        except CannotSave as error:
            self._not_saved(error)

    def close(self) -> None:
        """Write no more; what is being written becomes whole."""
        try:
            self.saver.close()
        except CannotSave as error:
            self._not_saved(error)

    def last(self) -> Path | None:
        """The newest checkpoint that is whole, if there is one."""
        return self.saver.newest()

    def _not_saved(self, error: CannotSave) -> None:
        """Tell of a checkpoint that was not written."""
        self.notes.append(str(error))
        _LOG.warning("%s; training goes on", error)
