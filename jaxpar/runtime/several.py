"""Training in several processes: the same program in each, watched; in one process nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxpar.core.progress import here
from jaxpar.data.record import Batch, Dataset
from jaxpar.optimizers.record import Recipe
from jaxpar.program.record import Program
from jaxpar.runtime.distributed import joined
from jaxpar.runtime.fingerprint import check_same


def agreed(path: Path) -> Path:
    """The path that process 0 has, in every process: each would choose another unused name."""
    mine = joined()
    return path if mine is None else Path(mine.told("path", str(path))[0])


def first_said(what: str, said: str) -> str:
    """The first text that is not empty, of what each process says, in every process.

    So that all of them treat alike what only one has met, such as a file that it cannot read.

    Args:
        what: is asked.
        said: by this process; "" for nothing.
    """
    mine = joined()
    return said if mine is None else next(filter(None, mine.told(what, said)), "")


def meet() -> None:
    """Wait until every process has come here."""
    mine = joined()
    if mine is not None:
        mine.meet()


def ask_to_stop() -> bool:
    """Ask every process to stop soon, as a handler of SIGTERM may; False for one alone."""
    mine = joined()
    if mine is not None:
        mine.watchdog.stop.ask()
    return mine is not None


def is_to_stop(step: int) -> bool:
    """Whether every process stops before this step, since one was asked to; False for one alone.

    To be asked before each step, in every process.
    """
    mine = joined()
    return mine is not None and mine.watchdog.stop.is_due(step)


def stops_after(step: int, is_asked: Callable[[], bool]) -> bool:
    """Whether training stops when this step is done: in every process alike.

    Args:
        step: that is done.
        is_asked: whether this process was asked to stop.
    """
    if is_asked():
        ask_to_stop()
    return is_asked() if joined() is None else is_to_stop(step)


def good_checkpoint(name: str) -> None:
    """What training can go on from if a process is lost now: said with the sentence that ends it.

    Args:
        name: of a whole checkpoint, for people.
    """
    mine = joined()
    if mine is not None:
        mine.watchdog.last_good = name


def on_the_same(program: Program, data: Dataset, training: Recipe) -> Dataset:
    """The data to train on, once every process was found to run the same program on it.

    Args:
        program: it need not be compiled.
        data: what is trained on.
        training: how.

    Returns:
        The same data, which tells the watchdog how far this process has come.

    Raises:
        RequestError: for processes that differ.
    """
    mine = joined()
    if mine is None:
        return data
    check_same(mine, program, data, training)
    return watched(data)


def watched(data: Dataset) -> Dataset:
    """The same data, which tells how far training has come whenever a batch is read."""

    def draw(step: int, size: int, seed: int, rows: np.ndarray) -> Batch:
        here.at(f"reading the batch of step {step + 1}")
        batch = data.draw(step, size, seed, rows)
        here.at(f"in step {step + 1}")
        return batch

    return replace(data, draw=draw, walk=None if data.walk is None else _watched_walk(data.walk))


def _watched_walk(
    walk: Callable[[int, np.ndarray], Iterator[Batch]],
) -> Callable[[int, np.ndarray], Iterator[Batch]]:
    """The same walk over the test split, which tells how far it has come."""

    def watched_walk(size: int, rows: np.ndarray) -> Iterator[Batch]:
        here.at("reading test batch 1")
        for number, batch in enumerate(walk(size, rows), 1):
            here.at(f"in test batch {number}")
            yield batch
            here.at(f"reading test batch {number + 1}")
        here.at("after the test", may_last=True)

    return watched_walk
