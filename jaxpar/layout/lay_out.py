"""Layout: how every array of a model is sharded on a mesh. Pure; needs no device.

Raises LayoutError when a size does not divide or one axis is asked to split two dims of an array.
An array stays replicated only where a table says so or it is smaller than the
strategy's stated threshold, and `notes` says which.
"""

from collections.abc import Mapping
from types import MappingProxyType

from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from jaxpar.attention.fit import calls_in, exchange_of, refuse_unfit
from jaxpar.core.errors import LayoutError, expect
from jaxpar.core.mesh import MeshShape, check_spec, refuse_faults
from jaxpar.inference.traced import module_of, traced_loss
from jaxpar.layout.checks import (
    _check_between,
    _check_help,
    _check_needs,
    _check_replicas,
    _check_roles,
)
from jaxpar.layout.dims import _layer_counts, dims_of
from jaxpar.layout.notes import notes_of
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.specs import _by_role, _shard_further
from jaxpar.layout.stages import check_stages, runs_in_stages
from jaxpar.models.modules import value_of
from jaxpar.models.record import Model
from jaxpar.strategies.record import SHARDABLE, Strategy


def lay_out(
    model: Model,
    *,
    strategy: Strategy | str,
    mesh: MeshShape | str | Mesh | AbstractMesh | Mapping[str, int],
) -> Layout:
    """Lay `model` out by `strategy` on `mesh`.

    Args:
        model: from the catalogue, or what `jaxpar.model` makes of a Flax module.
        strategy: a record, or its name, or names joined by +.
        mesh: a record, or its spelling "data=4,model=2", or a mesh of JAX's, of which the sizes
            are taken.

    Raises:
        RequestError: for another thing than these.
        LayoutError: naming every dim that does not divide, with both sizes and the nearest that
            work; or a strategy of several replicas on a mesh that holds one.
    """
    expect(
        "lay_out's model", model, Model,
        "jaxpar.model(module, loss, batch) makes a Model of a Flax module, and "
        "jaxpar.MODELS.load(name)() one of the catalogue",
    )  # fmt: skip
    strategy, mesh = Strategy.of(strategy), MeshShape.of(mesh)
    _check_replicas(strategy, mesh)
    module = module_of(model)
    check_stages(model, strategy, mesh, _layer_counts(model, module))
    faults: dict[str, list[str]] = {}
    kept_replicated: list[str] = []
    indivisible: list[str] = []
    groups = []
    for variables in (module.parameters, module.state):
        arrays = {}
        for path, variable in variables.items():
            value = value_of(variable)
            dims = dims_of(model, path, variable, module.parameters)
            used = _by_role(model, strategy, mesh, dims, shape=value.shape)
            stored = used
            if variables is module.parameters or isinstance(variable, nnx.Param):
                stored, fault, whole = _shard_further(
                    model, strategy, mesh, path, value.shape, dims, used
                )
                if model.units and fault:
                    indivisible.append(path)
                else:
                    faults.setdefault(path, []).extend(fault)
                kept_replicated += whole
            faults.setdefault(path, []).extend(check_spec(value.shape, dims, used, mesh))
            specs = {what: stored if what in strategy.sharded else used for what in SHARDABLE}
            arrays[path] = Array(
                path,
                value.shape,
                value.dtype,
                dims,
                stored=specs["parameters"],
                used=used,
                gradient=specs["gradients"],
                optimizer_state=specs["optimizer_state"],
            )
        groups.append(MappingProxyType(arrays))
    batch = {}
    for name, field in model.batch.items():
        batch[name] = _by_role(model, strategy, mesh, field.dims)
        apart = _by_role(model, strategy, mesh, field.dims, between=True)
        # Whatever the residual is split by must divide the fields that it is made from.
        fault = {
            f: None
            for spec in (batch[name], apart)
            for f in check_spec(field.shape, field.dims, spec, mesh)
        }
        faults.setdefault(f"batch {name}", []).extend(fault)
    _check_needs(model, strategy, groups)
    refuse_faults(faults)
    _check_help(model, strategy, mesh, groups, batch)
    _check_roles(model, groups)
    _check_between(model, strategy)
    exchange = exchange_of(model, strategy, mesh)
    if exchange is not None:
        if runs_in_stages(strategy, mesh) and not exchange.staged:
            raise LayoutError(
                f"model '{model.name}' under strategy '{strategy.name}': exchange "
                f"'{exchange.name}' passes shards on by permutes, which all devices of a mesh make "
                "together, and the stages of a pipeline work at different times: use "
                "--set exchange=ulysses, or pipe=1"
            )
        refuse_unfit(exchange, model, calls_in(traced_loss(model).closed))
    specs = [*batch.values(), *(a.optimizer_state for arrays in groups for a in arrays.values())]
    arrays = {**groups[0], **groups[1]}
    notes = notes_of(model, strategy, mesh, arrays, kept_replicated, indivisible, specs)
    notes += () if exchange is None else exchange.notes
    parameters, state = groups
    return Layout(model, strategy, mesh, parameters, state, MappingProxyType(batch), notes, module)
