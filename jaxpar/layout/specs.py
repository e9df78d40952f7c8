"""From tables of roles to PartitionSpecs: how one array is sharded in use, and how it is stored."""

from math import prod

from jax.sharding import PartitionSpec

from jaxpar.core.mesh import MeshShape, axes_of, check_spec, entry_of, shards
from jaxpar.layout.stages import is_padded
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import Strategy


def by_role(
    model: Model,
    strategy: Strategy,
    mesh: MeshShape,
    dims: tuple[str, ...],
    *,
    between: bool = False,
    shape: tuple[int, ...] | None = None,
) -> PartitionSpec:
    """How an array with these dims is sharded in use, or `between` the parts of a block."""
    table = _between(model, strategy, mesh) if between else strategy.compute
    roles = [role_of(model, dim) for dim in dims]
    if shape is not None:
        padded = {
            role
            for role, size in zip(roles, shape, strict=True)
            if role == "layers" and is_padded(strategy, mesh, size)
        }
        table = {role: axes for role, axes in table.items() if role not in padded}
    wanted = (tuple(axis for axis in table.get(role, ()) if mesh.size(axis) > 1) for role in roles)
    return PartitionSpec(
        *(
            entry_of(axes if _can_be_sharded(model, mesh, dim, axes) else ())
            for dim, axes in zip(dims, wanted, strict=True)
        )
    )


def _between(model: Model, strategy: Strategy, mesh: MeshShape) -> dict[str, tuple[str, ...]]:
    """The strategy's table of roles between the parts of a block.

    What it shards along the sequence it shards along the rows, where there are enough of them: the
    dim that lies outermost. Along another XLA transposes the whole residual wherever it is gathered
    or scattered (Llama 2 70B, 8 x 8 H100s: 2.1 TB of copies a step).
    """
    further = {role: axes_of(axes) for role, axes in strategy.between.items()}
    rows = (*axes_of(strategy.compute.get("batch", ())), *further.get("sequence", ()))
    if len(set(rows)) == len(rows) and model.batch_size % prod(map(mesh.size, rows)) == 0:
        further = {role: axes for role, axes in further.items() if role != "sequence"}
        further["batch"] = rows
    return {**{role: axes_of(axes) for role, axes in strategy.compute.items()}, **further}


def _can_be_sharded(model: Model, mesh: MeshShape, dim: str, axes: tuple[str, ...]) -> bool:
    """Whether a dim has as many units as these axes have devices; one without units always has."""
    return model.units.get(dim, 0) % prod(mesh.size(axis) for axis in axes) == 0


def shard_further(model, strategy, mesh, path, shape, dims, used):
    """Shard a weight over the axes of `strategy.store`: (spec, faults, paths kept replicated)."""
    spec, faults, whole = list(used), [], []
    roles = [role_of(model, dim) for dim in dims]
    for axis, preference in strategy.store.items():
        ways = mesh.size(axis)
        if ways == 1 or axis in (a for entry in spec for a in axes_of(entry)):
            continue
        # Stacked layers are gathered one at a time, so a layer's own size is what counts.
        if (
            prod(n for n, r in zip(shape, roles, strict=True) if r != "layers")
            < strategy.whole_below
        ):
            whole.append(path)
            continue
        # An unsharded dim comes first, then the order of roles, then the largest: fewer, longer
        # runs. A dim that is sharded already is sharded again where no other divides.
        candidates = sorted(
            (i for i in range(len(dims)) if roles[i] in preference),
            key=lambda i: (spec[i] is not None, preference.index(roles[i]), -shape[i]),
        )
        further = {i: PartitionSpec((*axes_of(spec[i]), axis)) for i in candidates}
        fitting = [i for i in candidates if shape[i] % shards(further[i], mesh) == 0]
        if fitting:
            spec[fitting[0]] = further[fitting[0]][0]
            continue
        largest = max(candidates, key=lambda i: shape[i], default=None)
        if largest is None:
            faults.append(
                f"none of its dims {', '.join(dims)} is one that strategy '{strategy.name}' shards "
                f"over mesh axis '{axis}': use {axis}=1"
            )
        else:
            faults += check_spec((shape[largest],), (dims[largest],), further[largest], mesh)
    return PartitionSpec(*spec), faults, whole
