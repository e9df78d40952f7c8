"""The name of each dim of a model's variables, from the model or from Flax's metadata."""

from collections.abc import Mapping

from flax import nnx

from jaxpar.core.errors import LayoutError
from jaxpar.core.roles import ONE, UNNAMED
from jaxpar.models.modules import Parts, names_in_metadata, value_of
from jaxpar.models.record import Model, role_of


def dims_of(
    model: Model, path: str, variable: nnx.Variable, parameters: Mapping[str, nnx.Variable]
) -> tuple[str, ...]:
    """The name of each dim of a variable, as the model says or from Flax's metadata.

    A statistic without names has those of the parameter beside it that has its shape.
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


Form = tuple[tuple[int, ...], tuple[str, ...]]
"""An array's shape, and the name of each dim."""


def weight_forms(model: Model, module: Parts) -> set[Form]:
    """The forms of a module's parameters, of which the name of a dim is known."""
    parameters = module.parameters.items()
    forms = {(value_of(v).shape, dims_of(model, path, v, {})) for path, v in parameters}
    return {(shape, dims) for shape, dims in forms if set(dims) - {ONE, UNNAMED}}


def layer_counts(model: Model, module: Parts) -> list[int]:
    """How many layers each stack of parameters has."""
    return [
        value_of(v).shape[0]
        for path, v in module.parameters.items()
        if value_of(v).shape and role_of(model, dims_of(model, path, v, {})[0]) == "layers"
    ]
