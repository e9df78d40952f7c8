"""Orbax reading a checkpoint: the parts that are asked for, or one sentence on why they are not."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpar.runtime.checkpoint.files import check_files
from jaxpar.runtime.checkpoint.folder import METADATA
from jaxpar.runtime.checkpoint.library import orbax
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint
from jaxpar.runtime.checkpoint.own_state import PARTS
from jaxpar.runtime.checkpoint.quiet import quiet, said


def sharded_parts(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a checkpoint as jax.Arrays.

    Args:
        folder: of the checkpoint.
        like: part -> nested dicts of jax.ShapeDtypeStruct with shardings; an empty part is none.

    Raises:
        DamagedCheckpoint: when a part cannot be read.
    """
    ocp = orbax()
    refuse_missing(folder, [name for name, part in like.items() if part])
    items = {name: ocp.args.StandardRestore(part) for name, part in like.items() if part}
    empty = {name: part for name, part in like.items() if not part}
    # Each process by itself: in Orbax's barriers all would wait for one that cannot read.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={jax.process_index()}, barrier_sync_key_prefix="jaxpar"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
    )
    with _told(folder), ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        found = reader.restore(folder.absolute(), args=ocp.args.Composite(**items))
        return {**{name: found[name] for name in items}, **empty}


def refuse_missing(folder: Path, parts: Iterable[str]) -> None:
    """Refuse a checkpoint that lacks one of the parts that it should have, by its name."""
    for part in parts:
        try:
            os.stat(folder / part)
        except FileNotFoundError:
            raise DamagedCheckpoint(f"checkpoint {folder}: its folder '{part}' is gone") from None
        except OSError:  # told by whoever reads it
            continue


def part_here(folder: Path, part: str) -> Any:
    """One part of a checkpoint in host memory, nested dicts of numpy arrays.

    Raises:
        DamagedCheckpoint: when it cannot be read.
    """
    ocp = orbax()
    # It warns of every part that it has no handler for.
    handlers: dict[str, Any] = {name: ocp.PyTreeCheckpointHandler() for name in PARTS}
    handlers[METADATA] = ocp.JsonCheckpointHandler()
    handler = ocp.CompositeCheckpointHandler(**handlers)
    with _told(folder), ocp.Checkpointer(handler) as reader:
        tree = reader.metadata(folder.absolute()).item_metadata[part].tree
        here = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(tree, restore_args=here)
        return reader.restore(folder.absolute(), args=ocp.args.Composite(**{part: args}))[part]


def shapes_there(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each array of a tree that Orbax wrote.

    Raises:
        DamagedCheckpoint: when its folder is none of Orbax's.
    """
    return {name: shape for name, (shape, _) in kinds_there(folder).items()}


def kinds_there(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype of each array of a tree that Orbax wrote.

    Raises:
        DamagedCheckpoint: when its folder is none of Orbax's.
    """
    ocp = orbax()
    # The handler alone, as a Checkpointer warns of a part that has no metadata of a whole.
    with _told(folder):
        handler: Any = ocp.PyTreeCheckpointHandler()
        found = handler.metadata(folder.absolute())
        flat = jax.tree_util.tree_leaves_with_path(found.tree)
        return {
            jax.tree_util.keystr(keys, simple=True, separator="/"): (tuple(x.shape), str(x.dtype))
            for keys, x in flat
        }


def tree_there(folder: Path, like: Any) -> Any:
    """A tree that Orbax wrote, as jax.Arrays of the types and shardings of `like`.

    Raises:
        DamagedCheckpoint: when it cannot be read.
    """
    ocp = orbax()
    with _told(folder), ocp.StandardCheckpointer() as reader:
        return reader.restore(folder.absolute(), like)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Within, whatever keeps Orbax from reading is one sentence."""
    check_files(folder)
    try:
        with quiet(folder.absolute()):
            yield
    except Exception as error:  # Orbax, TensorStore and JSON have their own for what is damaged
        why = said(error)
        if isinstance(error, LookupError | TypeError | AttributeError):  # of no use to a person
            why = "what describes its arrays is not as Orbax writes it"
        raise DamagedCheckpoint(f"checkpoint {folder}: cannot be read ({why})") from error
