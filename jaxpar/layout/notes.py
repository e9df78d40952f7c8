"""What to know about a layout: what is replicated, what idles, where stages put things.

A choice that costs something is said in a sentence, never made in silence.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

from jax.sharding import PartitionSpec

from jaxpar.core.mesh import MeshShape, axes_of
from jaxpar.core.roles import ONE
from jaxpar.layout.gathering import gathering_notes
from jaxpar.layout.stages import AXIS as STAGES
from jaxpar.layout.stages import is_padded, runs_in_stages
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import Strategy


def notes_of(
    model: Model,
    strategy: Strategy,
    mesh: MeshShape,
    parameters: Mapping[str, Any],
    kept_replicated: Sequence[str],
    indivisible: Sequence[str],
    specs: Iterable[PartitionSpec],
) -> tuple[str, ...]:
    """What a person should know of a layout, a sentence each.

    Args:
        model, strategy, mesh: what was laid out.
        parameters: path -> `jaxpar.layout.Array`.
        kept_replicated: paths of arrays too small to be sharded by `strategy.store`.
        indivisible: paths of arrays of which no dim divides.
        specs: of everything that was laid out.
    """
    notes = [*model.notes, *_whole_dims(model, strategy, mesh, parameters)]
    if indivisible:
        notes.append(
            f"{_some(indivisible)} stay replicated: none of their dims divides by the "
            f"{' x '.join(f'{axis}={mesh.size(axis)}' for axis in strategy.store)} devices that "
            f"strategy '{strategy.name}' would shard them over"
        )
    if kept_replicated:
        share = sum(parameters[p].whole_bytes for p in kept_replicated) / max(
            1, sum(a.whole_bytes for a in parameters.values())
        )
        notes.append(
            f"{len(kept_replicated)} arrays of fewer than {strategy.whole_below:,} elements stay "
            f"replicated over {' x '.join(strategy.store)} ({share:.2%} of the parameter bytes): "
            f"{', '.join(kept_replicated)}"
        )
    sharding = {axis for spec in specs for entry in spec for axis in axes_of(entry)}
    sharding |= {STAGES} if runs_in_stages(strategy, mesh) else set()
    for axis, size in mesh.sizes:
        if size > 1 and axis in strategy.axes and axis not in sharding:
            notes.append(
                f"nothing of this model is sharded over mesh axis '{axis}', so its {size} devices "
                f"do the same work: strategy '{strategy.name}' found no dim in a role that it "
                "shards; name the dims in the model's metadata and give their roles"
            )
        if size > 1 and axis not in strategy.axes:
            notes.append(
                f"strategy '{strategy.name}' shards nothing over mesh axis '{axis}': its {size} "
                "devices do the same work"
            )
    stages = _stage_notes(model, strategy, mesh, parameters)
    return (*notes, *stages, *gathering_notes(model, strategy, mesh, parameters))


def _whole_dims(model, strategy, mesh, parameters) -> list[str]:
    """Which dims of a model that nobody annotated stay replicated where others like them do not."""
    there = {dim for a in parameters.values() for dim in a.dims}
    indivisible: dict[tuple[str, ...], list[str]] = {}
    for dim, units in model.units.items():
        axes = tuple(a for a in strategy.compute.get(role_of(model, dim), ()) if mesh.size(a) > 1)
        if dim in there and units % prod(mesh.size(axis) for axis in axes):
            indivisible.setdefault(axes, []).append(f"'{dim}' ({units})")
    notes = [
        f"{_dims(dims)} replicated: strategy '{strategy.name}' would shard {_it(dims)} over "
        f"{' x '.join(axes)}, and {prod(mesh.size(axis) for axis in axes)} does not divide "
        f"{_it(dims)}"
        for axes, dims in indivisible.items()
    ]
    sharding = {axis for axes in strategy.compute.values() for axis in axes if mesh.size(axis) > 1}
    pairs = {a for role in ("inner", "heads") for a in strategy.compute.get(role, ())} & sharding
    if pairs and model.named:
        notes += why_whole(model)
        unfit = {dim.split("'")[1] for dims in indivisible.values() for dim in dims}
        notes += _whole_weights(model, parameters, pairs, unfit)
    return notes


def _whole_weights(model: Model, parameters, pairs: set[str], unfit: set[str]) -> list[str]:
    """Which matrices of such a model stay replicated without a dim that a reason was given for.

    Args:
        model, parameters: what was laid out.
        pairs: the mesh axes that pairs of matrices are sharded over.
        unfit: dims that do not divide by their devices.
    """
    told = {n.name for n in model.named if n.whole_because} | unfit

    def is_matrix(array) -> bool:
        return sum(dim != ONE and role_of(model, dim) != "layers" for dim in array.dims) > 1

    found = [
        path
        for path, a in parameters.items()
        if is_matrix(a)
        and not pairs & {axis for entry in a.used for axis in axes_of(entry)}
        and not told & {part for dim in a.dims for part in (dim, *dim.split("*"))}
    ]
    read = [path for path in found if path in model.read_at]
    lines = list(dict.fromkeys(line for path in read if (line := model.read_at[path])))
    its = "its" if len(read) == 1 else "their"
    why = {
        f"one matrix makes and another uses up none of {its} dims, but for those that the batch "
        "brings too or that meet a sharded dim in an array"
        + (f" ({_some(lines, 3, '; ')})" if lines else ""): read,
        "no product or lookup of the loss reads all of "
        + ("it" if len(found) == len(read) + 1 else "them"): [p for p in found if p not in read],
    }
    return [
        f"{_some(paths)} {'stays' if len(paths) == 1 else 'stay'} replicated: {reason}"
        for reason, paths in why.items()
        if paths
    ]


def why_whole(model: Model) -> list[str]:
    """Why dims that look like ones to shard stay replicated, a sentence for each reason."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for n in model.named:
        if n.whole_because:
            dims, lines = found.setdefault(n.whole_because, ([], []))
            dims.append(f"'{n.name}' ({n.size})")
            if n.whole_at and n.whole_at not in lines:
                lines.append(n.whole_at)
    return [
        f"{_dims(dims)} replicated: "
        + (reason.replace(" needs it ", " needs them ") if len(dims) > 1 else reason)
        + (f" ({_some(lines, 3, '; ')})" if lines else "")
        for reason, (dims, lines) in found.items()
    ]


def _dims(dims: Sequence[str]) -> str:
    """The subject and verb of a sentence about dims."""
    return f"dim {dims[0]} stays" if len(dims) == 1 else f"dims {_some(dims)} stay"


def _it(dims: Sequence[str]) -> str:
    """The pronoun for dims."""
    return "it" if len(dims) == 1 else "them"


def _some(words: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """The first few for a sentence, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more


def _stage_notes(model, strategy, mesh, parameters) -> list[str]:
    """What a pipeline replicates, and which layers it pads, a sentence each."""
    if not runs_in_stages(strategy, mesh):
        return []
    stacks = {p for p, a in parameters.items() if role_of(model, a.dims[0]) == "layers"}
    outside = [p for p in parameters if p not in stacks]
    notes = [
        f"{', '.join(outside)} are replicated on every stage; the first stage uses what comes "
        "before the layers, the last or all of them what comes after, and their gradients are "
        "summed over 'pipe'"
    ]
    layers = {parameters[p].shape[0] for p in stacks}
    if any(is_padded(strategy, mesh, n) for n in layers):
        notes.append(
            f"{', '.join(map(str, layers))} layers do not divide by the stages: they are padded "
            "with layers that do nothing, and replicated on every stage"
        )
    return notes
