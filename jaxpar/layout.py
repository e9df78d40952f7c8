"""Layout: where every dim of every array of a model lies on a mesh. Pure; needs no device.

Raises LayoutError when a size does not divide or one axis is asked to split two dims of an array.
An array stays whole on several devices only where a table says so or it is smaller than the
strategy's stated threshold, and `notes` says which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from jaxpar.exchanges._fit import exchange_of, refuse_unfit
from jaxpar.exchanges._record import Exchange
from jaxpar.mesh import MeshShape, axes_of, check_spec, entry_of, refuse_faults, shards
from jaxpar.models._record import Model, role_of
from jaxpar.modules import Parts, abstract, names_in_metadata, value_of
from jaxpar.notes import notes_of
from jaxpar.refusal import LayoutError, unknown
from jaxpar.roles import UNNAMED
from jaxpar.stages import check_stages, is_padded, layer_order, runs_in_stages
from jaxpar.strategies._record import APART, CUTS, Strategy


@dataclass(frozen=True)
class Array:
    """One array of the model, and how it is cut.

    Attributes:
        path: where it sits in the module, such as `blocks/qkv`.
        shape, dtype, dims: its sizes, element type, and a name for each dim.
        stored: how it lies between uses.
        computed: how it lies in use; differs from `stored` where the strategy gathers weights.
        gradient: how its gradient lies once it is summed.
        moment: how the optimizer's moments of it lie.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    dims: tuple[str, ...]
    stored: PartitionSpec
    computed: PartitionSpec
    gradient: PartitionSpec
    moment: PartitionSpec

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def specs(self) -> tuple[PartitionSpec, ...]:
        """All the ways in which it lies."""
        return (self.stored, self.computed, self.gradient, self.moment)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the whole array."""
        return self.size * itemsize(self.dtype)

    def device_bytes(self, mesh: MeshShape) -> int:
        """Bytes of it on each device of `mesh`."""
        return self.whole_bytes // shards(self.stored, mesh)


@dataclass(frozen=True)
class Layout:
    """A model laid out by a strategy on a mesh shape.

    Attributes:
        model, strategy, mesh: what was laid out.
        parameters, state: path -> `Array`; `state` is what a step changes without a gradient.
        batch: field name -> PartitionSpec.
        notes: what a person should know about this layout, a sentence each.
        module: the module's structure and abstract variables, as `take_apart` returns them.
    """

    model: Model
    strategy: Strategy
    mesh: MeshShape
    parameters: Mapping[str, Array]
    state: Mapping[str, Array]
    batch: Mapping[str, PartitionSpec]
    notes: tuple[str, ...]
    module: Parts

    @property
    def row_axes(self) -> tuple[str, ...]:
        """Over which mesh axes the rows of a batch lie."""
        return axes_of(next(iter(self.batch.values()))[0])

    @property
    def row_shares(self) -> int:
        """Into how many shares the rows of a batch are cut."""
        return prod(self.mesh.size(axis) for axis in self.row_axes)

    def order_of(self, path: str) -> tuple[int, ...] | None:
        """Which layer lies at each place of a stored stack; None for their own order."""
        array = self.parameters[path]
        if not array.dims or role_of(self.model, array.dims[0]) != "layers":
            return None
        return layer_order(self.strategy, self.mesh, array.shape[0])

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters, whole."""
        return sum(a.whole_bytes for a in self.parameters.values())

    @property
    def parameter_device_bytes(self) -> int:
        """Bytes of parameters on each device."""
        return sum(a.device_bytes(self.mesh) for a in self.parameters.values())

    @property
    def exchange(self) -> Exchange | None:
        """How attention sees a split sequence, or None where it sees it whole."""
        return exchange_of(self.model, self.strategy, self.mesh)

    def place_of(self, dims: tuple[str, ...], *, between: bool = False) -> PartitionSpec:
        """How an activation with these dims lies: in use, or `between` the parts of a block.

        An axis that several of the dims want goes to the first of them.
        """
        spec = _by_role(self.model, self.strategy, self.mesh, dims, between=between)
        taken: set[str] = set()
        entries = []
        for entry in spec:
            entries.append(entry_of(axis for axis in axes_of(entry) if axis not in taken))
            taken.update(axes_of(entry))
        return PartitionSpec(*entries)


def lay_out(model: Model, *, strategy: Strategy, mesh: MeshShape) -> Layout:
    """Lay `model` out by `strategy` on `mesh`.

    Raises:
        LayoutError: naming every dim that does not divide, with both sizes and the nearest that
            work; or a strategy that trains replicas apart on a mesh that holds one.
    """
    _check_replicas(strategy, mesh)
    module = abstract(model)
    check_stages(model, strategy, mesh, _layer_counts(model, module))
    faults: dict[str, list[str]] = {}
    kept_whole: list[str] = []
    indivisible: list[str] = []
    groups = []
    for variables in (module.parameters, module.state):
        arrays = {}
        for path, variable in variables.items():
            value = value_of(variable)
            dims = dims_of(model, path, variable, module.parameters)
            computed = _by_role(model, strategy, mesh, dims, shape=value.shape)
            cut = computed
            if variables is module.parameters or isinstance(variable, nnx.Param):
                cut, fault, whole = _cut_further(
                    model, strategy, mesh, path, value.shape, dims, computed
                )
                if model.units and fault:
                    indivisible.append(path)
                else:
                    faults.setdefault(path, []).extend(fault)
                kept_whole += whole
            faults.setdefault(path, []).extend(check_spec(value.shape, dims, computed, mesh))
            lies = {what: cut if what in strategy.cuts else computed for what in CUTS}
            arrays[path] = Array(
                path,
                value.shape,
                value.dtype,
                dims,
                stored=lies["parameters"],
                computed=computed,
                gradient=lies["gradients"],
                moment=lies["moments"],
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
                f"'{exchange.name}' passes pieces on by permutes, which all devices of a mesh make "
                "together, and the stages of a pipeline work at different times: use "
                "--set exchange=ulysses, or pipe=1"
            )
        refuse_unfit(exchange, model, module)
    specs = [*batch.values(), *(a.moment for arrays in groups for a in arrays.values())]
    arrays = {**groups[0], **groups[1]}
    notes = notes_of(model, strategy, mesh, arrays, kept_whole, indivisible, specs)
    notes += () if exchange is None else exchange.notes
    return Layout(model, strategy, mesh, *groups, MappingProxyType(batch), notes, module)


def dims_of(
    model: Model, path: str, variable: nnx.Variable, parameters: Mapping[str, nnx.Variable]
) -> tuple[str, ...]:
    """The name of each dim of a variable, as the model says or from Flax's metadata.

    A statistic without names lies like the parameter beside it that has its shape.
    """
    shape = value_of(variable).shape
    names = model.dims.get(path) or names_in_metadata(variable)
    if names is not None and len(names) != len(shape):
        raise LayoutError(
            f"{path}: its metadata names {len(names)} dims {tuple(names)}, and it has "
            f"{len(shape)}: give every dim a name, or None"
        )
    if names is not None:
        return tuple(name or UNNAMED for name in names)
    folder = path.rpartition("/")[0]
    for other, neighbour in parameters.items():
        beside = other != path and other.rpartition("/")[0] == folder
        if beside and value_of(neighbour).shape == shape and path not in parameters:
            return dims_of(model, other, neighbour, parameters)
    return (UNNAMED,) * len(shape)


def _layer_counts(model: Model, module: Parts) -> list[int]:
    """How many layers each stack of parameters has."""
    return [
        value_of(v).shape[0]
        for path, v in module.parameters.items()
        if value_of(v).shape and role_of(model, dims_of(model, path, v, {})[0]) == "layers"
    ]


def itemsize(dtype: Any) -> int:
    """Bytes of one element; a random key counts as its data."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize


def _check_replicas(strategy: Strategy, mesh: MeshShape) -> None:
    """Refuse to average over one replica: it would be another strategy by a wrong name."""
    if strategy.averaging and mesh.size(APART) == 1:
        raise LayoutError(
            f"strategy '{strategy.name}' trains a copy at each place along mesh axis '{APART}', "
            f"and mesh {mesh} has one place: use {APART}=2 or more"
        )


def _check_roles(model: Model, groups) -> None:
    """Refuse a role given to a dim that no array has: a misspelt name would split nothing."""
    dims = {dim for arrays in groups for a in arrays.values() for dim in a.dims}
    dims |= {dim for f in model.batch.values() for dim in f.dims}
    dims |= {factor for dim in dims for factor in dim.split("*")}
    for dim in model.roles:
        if dim not in dims:
            raise unknown(f"dim in the roles of model '{model.name}'", dim, sorted(dims))


def _check_needs(model: Model, strategy: Strategy, groups) -> None:
    """Refuse a model without the dims that the strategy is about."""
    roles = {role_of(model, dim) for arrays in groups for a in arrays.values() for dim in a.dims}
    if missing := sorted(strategy.needs - roles):
        raise LayoutError(
            f"model '{model.name}' has no dim in role '{missing[0]}', which strategy "
            f"'{strategy.name}' splits: choose a model with {missing[0]}, or another strategy"
        )


def _check_help(model: Model, strategy: Strategy, mesh: MeshShape, groups, batch) -> None:
    """Refuse a strategy that splits nothing at all of a model that nobody annotated."""
    asked = [axis for axis in strategy.axes if mesh.size(axis) > 1]
    if not (model.units and asked) or runs_in_stages(strategy, mesh):
        return
    specs = [*batch.values(), *(s for arrays in groups for a in arrays.values() for s in a.specs)]
    if any(axis in asked for spec in specs for entry in spec for axis in axes_of(entry)):
        return
    wanted = sorted({role for axis in asked for role in strategy.roles_on(axis)})
    why = [
        f"'{d.name}' ({d.size}) stays whole because {d.whole_because}"
        for d in model.named
        if d.whole_because
    ]
    indivisible = [
        f"'{dim}' ({units}) does not divide"
        for dim, units in model.units.items()
        if role_of(model, dim) in wanted
    ]
    reasons = "; ".join((*why, *indivisible)) or "no two of its matrices make a width and use it up"
    raise LayoutError(
        f"strategy '{strategy.name}' can split nothing of model '{model.name}' over mesh axis "
        f"'{asked[0]}': {reasons}: use {asked[0]}=1, or a strategy such as data or fsdp"
    )


def _check_between(model: Model, strategy: Strategy) -> None:
    """Refuse to split between the parts of a block what the model has not got."""
    there = {role_of(model, dim) for f in model.batch.values() for dim in f.dims}
    for role in strategy.between:
        if role not in there:
            raise LayoutError(
                f"model '{model.name}' has no dim in role '{role}' in its batch, which strategy "
                f"'{strategy.name}' splits between the parts of a block: choose a strategy that "
                "does not, such as tensor"
            )


def _by_role(
    model: Model,
    strategy: Strategy,
    mesh: MeshShape,
    dims: tuple[str, ...],
    *,
    between: bool = False,
    shape: tuple[int, ...] | None = None,
) -> PartitionSpec:
    """How an array with these dims lies in use, or, with `between`, between parts of a block."""
    table = {**strategy.compute, **strategy.between} if between else strategy.compute
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
            entry_of(axes if _can_be_cut(model, mesh, dim, axes) else ())
            for dim, axes in zip(dims, wanted, strict=True)
        )
    )


def _can_be_cut(model: Model, mesh: MeshShape, dim: str, axes: tuple[str, ...]) -> bool:
    """Whether a dim that may stay whole has as many pieces as these axes have devices."""
    return model.units.get(dim, 0) % prod(mesh.size(axis) for axis in axes) == 0


def _cut_further(model, strategy, mesh, path, shape, dims, computed):
    """Cut a weight over the axes of `strategy.store`; returns (spec, faults, paths kept whole)."""
    spec, faults, whole = list(computed), [], []
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
        # A dim that is still whole comes first, then the order of roles, then the largest: fewer,
        # longer pieces. A dim that is cut already is cut again where no other divides.
        candidates = sorted(
            (i for i in range(len(dims)) if roles[i] in preference),
            key=lambda i: (spec[i] is not None, preference.index(roles[i]), -shape[i]),
        )
        cuts = {i: PartitionSpec((*axes_of(spec[i]), axis)) for i in candidates}
        fitting = [i for i in candidates if shape[i] % shards(cuts[i], mesh) == 0]
        if fitting:
            spec[fitting[0]] = cuts[fitting[0]][0]
            continue
        largest = max(candidates, key=lambda i: shape[i], default=None)
        if largest is None:
            faults.append(
                f"none of its dims {', '.join(dims)} is one that strategy '{strategy.name}' cuts "
                f"over mesh axis '{axis}': use {axis}=1"
            )
        else:
            faults += check_spec((shape[largest],), (dims[largest],), cuts[largest], mesh)
    return PartitionSpec(*spec), faults, whole
