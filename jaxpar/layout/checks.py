"""What a model, a strategy and a mesh cannot be together, a sentence each."""

from jaxpar.core.errors import LayoutError, unknown
from jaxpar.core.mesh import MeshShape, axes_of
from jaxpar.layout.notes import why_whole
from jaxpar.layout.stages import runs_in_stages
from jaxpar.models.record import Model, role_of
from jaxpar.strategies.record import REPLICA, Strategy


def check_replicas(strategy: Strategy, mesh: MeshShape) -> None:
    """Refuse to average over one replica: it would be another strategy by a wrong name."""
    if strategy.averaging and mesh.size(REPLICA) == 1:
        raise LayoutError(
            f"strategy '{strategy.name}' trains a replica at each place along mesh axis "
            f"'{REPLICA}', and mesh {mesh} has one place: use {REPLICA}=2 or more"
        )


def check_roles(model: Model, groups) -> None:
    """Refuse a role given to a dim that no array has: a misspelt name would shard nothing."""
    dims = {dim for arrays in groups for a in arrays.values() for dim in a.dims}
    dims |= {dim for f in model.batch.values() for dim in f.dims}
    dims |= {factor for dim in dims for factor in dim.split("*")}
    for dim in model.roles:
        if dim not in dims:
            raise unknown(f"dim in the roles of model '{model.name}'", dim, sorted(dims))


def check_needs(model: Model, strategy: Strategy, groups) -> None:
    """Refuse a model without the dims that the strategy is about."""
    roles = {role_of(model, dim) for arrays in groups for a in arrays.values() for dim in a.dims}
    if missing := sorted(strategy.needs - roles):
        raise LayoutError(
            f"model '{model.name}' has no dim in role '{missing[0]}', which strategy "
            f"'{strategy.name}' shards: choose a model with {missing[0]}, or another strategy"
        )


def check_help(model: Model, strategy: Strategy, mesh: MeshShape, groups, batch) -> None:
    """Refuse a strategy that shards nothing at all of a model that nobody annotated."""
    asked = [axis for axis in strategy.axes if mesh.size(axis) > 1]
    if not (model.units and asked) or runs_in_stages(strategy, mesh):
        return
    specs = [*batch.values(), *(s for arrays in groups for a in arrays.values() for s in a.specs)]
    if any(axis in asked for spec in specs for entry in spec for axis in axes_of(entry)):
        return
    wanted = sorted({role for axis in asked for role in strategy.roles_on(axis)})
    why = why_whole(model)
    indivisible = [
        f"'{dim}' ({units}) does not divide"
        for dim, units in model.units.items()
        if role_of(model, dim) in wanted
    ]
    reasons = "; ".join((*why, *indivisible)) or "no two of its matrices make a width and use it up"
    raise LayoutError(
        f"strategy '{strategy.name}' can shard nothing of model '{model.name}' over mesh axis "
        f"'{asked[0]}': {reasons}: use {asked[0]}=1, or a strategy such as data or fsdp"
    )


def check_between(model: Model, strategy: Strategy) -> None:
    """Refuse to shard between the parts of a block what the model has not got."""
    there = {role_of(model, dim) for f in model.batch.values() for dim in f.dims}
    for role in strategy.between:
        if role not in there:
            raise LayoutError(
                f"model '{model.name}' has no dim in role '{role}' in its batch, which strategy "
                f"'{strategy.name}' shards between the parts of a block: choose a strategy that "
                "does not, such as tensor"
            )
