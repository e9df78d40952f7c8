"""What comes after the layers, computed by all stages, each with its share of the vocabulary.

On the last stage alone the head of a large vocabulary is as much work as several layers, and all
others wait for it in every tick. Shared, the work of stages is alike (vocabulary parallelism: Yeung
et al. 2024, arXiv 2411.05288); the last stage's activation goes to all, its gradient comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import axes_of, entry_of, shards
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import AXIS, stages_of
from jaxpar.models.record import role_of
from jaxpar.step.pipeline.gathered import Gathering
from jaxpar.step.pipeline.parts import Parts
from jaxpar.step.placement import Sharded, sharded

LEAST = 16_384
"""From so many words a device on, for each position of an activation that it holds, sharing is
sooner between H100s' nodes too: 6 FLOPs a word and element at 600 TFLOP/s take longer than to move
four times the two bytes of an element at 50 GB/s."""

ROLE = "vocabulary"


def cuts_of(layout: Layout, parts: Parts, gathering: Gathering) -> Mapping[str, int]:
    """The weights of which each stage takes a share: path -> dim; empty where the last stage
    computes all.

    Args:
        layout: of one microbatch.
        parts: the loss, taken apart.
        gathering: how its weights are given.

    Raises:
        LayoutError: all stages were asked for, and the loss cannot be shared.
    """
    asked = stages_of(layout.strategy).head
    if asked == "last":
        return {}
    found, why = _cuts(layout, parts, gathering)
    if not found and asked == "all":
        raise LayoutError(
            f"model '{layout.model.name}' with head=all: {why}; use head=last, or head=auto"
        )
    if asked == "auto" and found:
        entering = sharded(layout, parts.names[0], tuple(parts.activation[0].shape)).between
        alike = shards(entering, layout.mesh) // layout.row_shares
        words = min(_words(layout, path, dim) for path, dim in found.items())
        return found if words >= LEAST // max(1, alike) else {}
    return found


def _cuts(layout: Layout, parts: Parts, gathering: Gathering) -> tuple[dict[str, int], str]:
    """(path -> dim that is cut, why nothing is)."""
    found: dict[str, int] = {}
    stages = layout.mesh.size(AXIS)
    for path in parts.after_paths:
        array = layout.parameters[path]
        dims = [i for i, dim in enumerate(array.dims) if role_of(layout.model, dim) == ROLE]
        if not dims:
            continue
        if path in parts.before_paths:
            return {}, f"'{path}' is used before the layers and after them"
        (dim,) = dims if len(dims) == 1 else (None,)
        if dim is None or _entry(gathering.spec(path), dim) != _entry(array.used, dim):
            return {}, f"'{path}' is gathered along its vocabulary"
        if _words(layout, path, dim) % stages:
            words = _words(layout, path, dim)
            return {}, f"the {words} words of '{path}' do not divide by its {stages} stages"
        found[path] = dim
    return found, "nothing after its layers has a vocabulary"


def _words(layout: Layout, path: str, dim: int) -> int:
    """Words of a weight on each device of a stage."""
    array = layout.parameters[path]
    return array.shape[dim] // shards(PartitionSpec(_entry(array.used, dim)), layout.mesh)


def _entry(spec: PartitionSpec, dim: int):
    """A spec's entry for a dim."""
    return spec[dim] if dim < len(spec) else None


def cut_further(spec: PartitionSpec, dim: int | None) -> PartitionSpec:
    """A spec with a dim sharded over the stages too; as it is where there is none."""
    if dim is None:
        return spec
    entries = [*spec, *[None] * (dim + 1 - len(spec))]
    entries[dim] = entry_of((*axes_of(entries[dim]), AXIS))
    return PartitionSpec(*entries)


def place(layout: Layout, names: tuple[str, ...], shape: tuple[int, ...]) -> Sharded:
    """How an array that the loss names is sharded while all stages compute: its words over them."""
    own = sharded(layout, names, shape)
    at = next((i for i, dim in enumerate(names) if role_of(layout.model, dim) == ROLE), None)
    if at is None:
        return own
    further = partial(cut_further, dim=at)
    if shape[at] % shards(further(own.used), layout.mesh):
        return own
    return Sharded(further(own.used), further(own.between))


def share(weight: jax.Array, dim: int, stages: int) -> jax.Array:
    """This stage's share of a weight along a dim."""
    size = weight.shape[dim] // stages
    return lax.dynamic_slice_in_dim(weight, lax.axis_index(AXIS) * size, size, dim)


def add_share(whole: jax.Array, more: jax.Array, dim: int) -> jax.Array:
    """A sum of gradients, with that of this stage's share of the weight added in place."""
    begin = lax.axis_index(AXIS) * more.shape[dim]
    own = lax.dynamic_slice_in_dim(whole, begin, more.shape[dim], dim)
    return lax.dynamic_update_slice_in_dim(whole, own + more, begin, dim)
