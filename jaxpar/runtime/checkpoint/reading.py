"""Whether a checkpoint is what was written, judged in host memory, whatever devices there are."""

from __future__ import annotations

import jax

from jaxpar.runtime.checkpoint.digest import digests
from jaxpar.runtime.checkpoint.folder import OnDisk, told_unread
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata
from jaxpar.runtime.checkpoint.orbax_reading import kinds_there, part_here, refuse_missing
from jaxpar.runtime.checkpoint.own_state import PARTS


def check_arrays(one: OnDisk, metadata: Metadata) -> None:
    """Compare every array of a checkpoint with the digest that was stored with it, part by part.

    Raises:
        DamagedCheckpoint: for the first that is not what was written, or cannot be read.
    """
    check_told(one, metadata)
    for part in sorted({name.partition("/")[0] for name in metadata.arrays}):
        flat = jax.tree_util.tree_leaves_with_path(part_here(one.folder, part))
        names = [f"{part}/{jax.tree_util.keystr(k, simple=True, separator='/')}" for k, _ in flat]
        found = digests(dict(zip(names, (x for _, x in flat), strict=True)))
        refuse_changed(one, metadata, part, found)


def check_told(one: OnDisk, metadata: Metadata) -> None:
    """Compare the arrays that a checkpoint tells of with those there: names, shapes and dtypes.

    Raises:
        DamagedCheckpoint: for the first that is in one and not in the other.
    """
    refuse_missing(one.folder, sorted({name.partition("/")[0] for name in metadata.arrays}))
    there: dict[str, tuple[tuple[int, ...], str]] = {}
    for part in PARTS:
        with told_unread(one.folder):
            is_there = (one.folder / part).is_dir()
        if is_there:
            found = kinds_there(one.folder / part)
            there |= {f"{part}/{name}": kind for name, kind in found.items()}
    told = {name: (tuple(x["shape"]), x["dtype"]) for name, x in metadata.arrays.items()}
    for name in sorted(there.keys() | told.keys()):
        if there.get(name) != told.get(name):
            raise DamagedCheckpoint(
                f"checkpoint {one.folder}: its metadata does not tell of '{name}' as it is there"
            )


def refuse_changed(one: OnDisk, metadata: Metadata, part: str, found: dict[str, str]) -> None:
    """Refuse a checkpoint if an array of a part has another digest than it was stored with."""
    for name, array in sorted(metadata.arrays.items()):
        if name.partition("/")[0] == part and found.get(name) != array["digest"]:
            raise DamagedCheckpoint(f"checkpoint {one.folder}: '{name}' is not what was written")
