"""Layout: how every array of a model is sharded on a mesh. Pure; needs no device.

Raises LayoutError when a size does not divide or one axis is asked to split two dims of an array.
An array stays replicated only where a table says so or it is smaller than the
strategy's stated threshold, and `notes` says which.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flax import nnx
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxpar.attention.fit import calls_in, exchange_of, refuse_unfit
from jaxpar.attention.record import Exchange
from jaxpar.core.errors import LayoutError, expect
from jaxpar.core.mesh import MeshShape, check_spec, refuse_faults
from jaxpar.inference.traced import module_of, traced_loss
from jaxpar.layout.checks import (
    check_between,
    check_help,
    check_needs,
    check_replicas,
    check_roles,
)
from jaxpar.layout.dims import dims_of, layer_counts, weight_forms
from jaxpar.layout.notes import notes_of
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.specs import by_role, shard_further
from jaxpar.layout.stages import check_stages, runs_in_stages
from jaxpar.models.modules import Parts, value_of
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
    check_replicas(strategy, mesh)
    module = module_of(model)
    check_stages(model, strategy, mesh, layer_counts(model, module))
    work = _Work(model, strategy, mesh, module)
    groups = [work.arrays(variables) for variables in (module.parameters, module.state)]
    batch = work.batch()
    check_needs(model, strategy, groups)
    refuse_faults(work.faults)
    check_help(model, strategy, mesh, groups, batch)
    check_roles(model, groups)
    check_between(model, strategy)
    exchange = _checked_exchange(model, strategy, mesh)
    specs = [*batch.values(), *(a.optimizer_state for arrays in groups for a in arrays.values())]
    arrays = {**groups[0], **groups[1]}
    notes = notes_of(model, strategy, mesh, arrays, work.kept_replicated, work.indivisible, specs)
    notes += () if exchange is None else exchange.notes
    parameters, state = groups
    return Layout(model, strategy, mesh, parameters, state, MappingProxyType(batch), notes, module)


class _Work:
    """Specs as they are made, and what is found meanwhile.

    Attributes:
        faults: path -> sentences on dims that do not divide.
        kept_replicated: paths of arrays too small to be stored sharded.
        indivisible: paths of arrays of a person's model that `store` cannot shard.
    """

    def __init__(self, model: Model, strategy: Strategy, mesh: MeshShape, module: Parts):
        self.model, self.strategy, self.mesh, self.module = model, strategy, mesh, module
        self.faults: dict[str, list[str]] = {}
        self.kept_replicated: list[str] = []
        self.indivisible: list[str] = []
        self.weights = weight_forms(model, module)

    def arrays(self, variables: Mapping[str, Any]) -> Mapping[str, Array]:
        """Path -> the `Array`, with its four PartitionSpecs, of each of a group of variables."""
        return MappingProxyType({p: self._array(p, v, variables) for p, v in variables.items()})

    def _array(self, path: str, variable: Any, variables: Mapping[str, Any]) -> Array:
        """One variable of a group, sharded."""
        model, strategy, mesh = self.model, self.strategy, self.mesh
        value = value_of(variable)
        dims = dims_of(model, path, variable, self.module.parameters)
        used = by_role(model, strategy, mesh, dims, shape=value.shape)
        stored = used
        if variables is self.module.parameters or isinstance(variable, nnx.Param):
            stored, fault, whole = shard_further(
                model, strategy, mesh, path, value.shape, dims, used
            )
            if model.units and fault:
                self.indivisible.append(path)
            else:
                self.faults.setdefault(path, []).extend(fault)
            self.kept_replicated += whole
        elif (value.shape, dims) in self.weights:
            # A running average of a weight is stored as the weight is, or else stays replicated.
            stored, _, _ = shard_further(model, strategy, mesh, path, value.shape, dims, used)
        self.faults.setdefault(path, []).extend(check_spec(value.shape, dims, used, mesh))
        specs = {what: stored if what in strategy.sharded else used for what in SHARDABLE}
        return Array(
            path,
            value.shape,
            value.dtype,
            dims,
            stored=specs["parameters"],
            used=used,
            gradient=specs["gradients"],
            optimizer_state=specs["optimizer_state"],
        )

    def batch(self) -> dict[str, PartitionSpec]:
        """How every field of a batch is sharded."""
        model, strategy, mesh = self.model, self.strategy, self.mesh
        batch = {}
        for name, field in model.batch.items():
            batch[name] = by_role(model, strategy, mesh, field.dims)
            apart = by_role(model, strategy, mesh, field.dims, between=True)
            # Whatever the residual is split by must divide the fields that it is made from.
            fault = {
                f: None
                for spec in (batch[name], apart)
                for f in check_spec(field.shape, field.dims, spec, mesh)
            }
            self.faults.setdefault(f"batch {name}", []).extend(fault)
        return batch


def _checked_exchange(model: Model, strategy: Strategy, mesh: MeshShape) -> Exchange | None:
    """How attention sees a sharded sequence, if it is one that the model and the mesh can bear."""
    exchange = exchange_of(model, strategy, mesh)
    if exchange is None:
        return None
    if runs_in_stages(strategy, mesh) and not exchange.staged:
        raise LayoutError(
            f"model '{model.name}' under strategy '{strategy.name}': exchange "
            f"'{exchange.name}' passes shards on by permutes, which all devices of a mesh make "
            "together, and the stages of a pipeline work at different times: use "
            "--set exchange=ulysses, or pipe=1"
        )
    refuse_unfit(exchange, model, calls_in(traced_loss(model).closed))
    return exchange
