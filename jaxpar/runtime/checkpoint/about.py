"""What a run says of itself in its checkpoints, and what their arrays are called."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import jax

from jaxpar.core.errors import RequestError
from jaxpar.program.record import Program
from jaxpar.runtime.checkpoint.metadata import Metadata

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jaxpar")


class CannotSave(RequestError):
    """A checkpoint that cannot be written, such as for a disk that is full."""


def about_run(program: Program, data: Any = None, training: Any = None) -> Metadata:
    """What all checkpoints of a run say of themselves."""
    layout = program.step.layout
    fields = {} if data is None else {n: [list(s), str(d)] for n, (s, d) in data.fields.items()}
    return Metadata(
        step=0,
        model=layout.model.name,
        layout={
            "strategy": layout.strategy.name,
            "mesh": str(layout.mesh),
            "devices": layout.mesh.devices,
            "batch": layout.model.batch_size,
            "mode": program.step.mode,
            "microbatches": program.step.microbatches,
            "hardware": program.hardware.name,
        },
        training={} if training is None else dict(vars(training)),
        data={}
        if data is None
        else {
            "name": data.name,
            "fields": fields,
            "fingerprint": data.fingerprint,
        },
        metrics={},
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        arrays={},
    )


def named(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> each array, or whatever else stands for one, of nested dicts of them."""
    flat = jax.tree_util.tree_flatten_with_path(parts, is_leaf=lambda x: isinstance(x, jax.P))[0]
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): x for keys, x in flat}
