"""Whether a checkpoint is what was written, judged in host memory, whatever devices there are."""

from __future__ import annotations

import jax

from jaxpar.runtime.checkpoint.digest import digests
from jaxpar.runtime.checkpoint.folder import OnDisk
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata
from jaxpar.runtime.checkpoint.orbax_reading import part_here


def check_arrays(one: OnDisk, metadata: Metadata) -> None:
    """Compare every array of a checkpoint with the digest that was stored with it, part by part.

    Raises:
        DamagedCheckpoint: for the first that is not what was written, or cannot be read.
    """
    for part in sorted({name.partition("/")[0] for name in metadata.arrays}):
        flat = jax.tree_util.tree_leaves_with_path(part_here(one.folder, part))
        names = [f"{part}/{jax.tree_util.keystr(k, simple=True, separator='/')}" for k, _ in flat]
        found = digests(dict(zip(names, (x for _, x in flat), strict=True)))
        refuse_changed(one, metadata, part, found)


def refuse_changed(one: OnDisk, metadata: Metadata, part: str, found: dict[str, str]) -> None:
    """Refuse a checkpoint if an array of a part has another digest than it was stored with."""
    for name, array in sorted(metadata.arrays.items()):
        if name.partition("/")[0] == part and found.get(name) != array["digest"]:
            raise DamagedCheckpoint(f"checkpoint {one.folder}: '{name}' is not what was written")
