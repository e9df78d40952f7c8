"""The Model record: a Flax module, its loss and an example batch, with a name for every dim.

A model never names a mesh axis. Its loss is a `Mean`, a numerator and a denominator, so that
splitting the batch over devices or microbatches cannot turn it into a mean of means.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.core.catalogue import MODELS
from jaxpar.core.errors import RequestError, expect, one_line, unknown, words_of
from jaxpar.core.kinds import MOST_COUNT, check_kinds, whole
from jaxpar.core.roles import ROLES, check_role
from jaxpar.models.pieces import Cut


@dataclass(frozen=True)
class Guard:
    """What keeps a division by a weight from being one by zero, as people write it.

    `max(weight, least)`, `weight + added`, or `instead` where the weight is zero.
    """

    least: float | None = None
    added: float | None = None
    instead: float | None = None

    def of(self, weight: jax.Array) -> jax.Array:
        """What is divided by, given a weight."""
        if self.least is not None:
            return jnp.maximum(weight, self.least)
        if self.added is not None:
            return weight + self.added
        return weight if self.instead is None else jnp.where(weight == 0, self.instead, weight)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A weighted mean as two scalars: `total` (summed values) and `weight` (summed weights).

    Means of parts of a batch are added, total to total and weight to weight; the mean of the whole
    is then total / guard.of(weight).
    """

    total: jax.Array
    weight: jax.Array
    guard: Guard = field(default=Guard(), metadata={"static": True})

    @property
    def divisor(self) -> jax.Array:
        """What the total is divided by, a scalar."""
        return self.guard.of(self.weight)

    @property
    def value(self) -> jax.Array:
        """The mean itself, a scalar."""
        return self.total / self.divisor


def weighted_mean(values: jax.Array, weight: jax.Array) -> Mean:
    """The mean of `values` under `weight`, two arrays of one shape.

    Args:
        values: any shape; what is averaged.
        weight: same shape; 1 for what counts, 0 for padding.
    """
    try:
        values, weight = jnp.asarray(values), jnp.asarray(weight)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"weighted_mean takes two arrays of numbers ({words_of(error)})"
        ) from error
    if values.shape != weight.shape:
        raise RequestError(
            f"weighted_mean's values have shape {values.shape} and their weight "
            f"{weight.shape}: give each value its own weight, jnp.broadcast_to(...) if many "
            "have one"
        )
    weight = weight.astype(values.dtype)
    return Mean(jnp.sum(values * weight), jnp.sum(weight))


@dataclass(frozen=True)
class Field:
    """One array of the example batch: its shape, dtype and the name of each dim, batch first.

    `below` bounds ids (a vocabulary or a number of classes), so that probe batches are legal. Where
    parts of the field pick from tables of several sizes it is the smallest; `most` is the largest.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    below: int | None = None
    most: int | None = None

    @property
    def bound(self) -> int | None:
        """What no id of it reaches, or None."""
        return self.most or self.below

    def __post_init__(self):
        counted = isinstance(self.shape, tuple) and all(isinstance(n, int) for n in self.shape)
        named = isinstance(self.dims, tuple) and all(isinstance(dim, str) for dim in self.dims)
        alike = counted and named and len(self.shape) == len(self.dims) > 0
        if not alike or self.dims[0].split("*")[0] != "batch":
            raise RequestError(
                f"batch field of shape {self.shape} names dims {self.dims}: give a tuple of sizes "
                "and a tuple of as many names, the first 'batch'"
            )
        expect("a batch field's dtype", self.dtype, str, "give its name, such as float32")
        try:
            jnp.dtype(self.dtype)
        except TypeError:
            raise RequestError(
                f"a batch field's dtype is '{self.dtype}', which JAX does not know: use a name "
                "such as float32"
            ) from None
        if self.below is not None:
            whole("a batch field's below", self.below, least=1)


MOST_LAYERS = 1000
"""Of a network whose layers stand one after another in the program: more take minutes to trace."""


def check_sizes(model: str, config: Any, **most: int) -> None:
    """Refuse a config with a field of another kind, a size below 1, or a rate outside 0 up to 1.

    Args:
        model: its name, for the sentence.
        config: a record of sizes.
        most: by field, the largest that it can be.
    """
    check_kinds(config, f"{model}: ")
    for f in fields(config):
        value = getattr(config, f.name)
        largest = most.get(f.name, MOST_COUNT)
        if type(value) is int and value < 1:
            raise RequestError(f"{model}: {f.name}={value}: use 1 or more")
        if type(value) is int and value > largest:
            raise RequestError(f"{model}: {f.name}={value}: use {largest:,} or less")
    rate = getattr(config, "dropout", 0.0)
    if not 0 <= rate < 1:
        raise RequestError(f"{model}: dropout={rate}: use a rate from 0 up to, not including, 1")


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes:
        name: for people.
        build: `build(rngs) -> nnx.Module`, called only under tracing.
        loss: `loss(module, batch, *, key, **hooks) -> (Mean, {name: Mean})`. `key` drives dropout.
        batch: field name -> `Field`; the sizes are those of the example, the batch dim may vary.
        roles: dim name -> role; a dim named after a role has it, others are `feature`.
        hooks: which of `through` and `attend` the loss accepts as keyword arguments, and
            "positions" if it asks `hooks.positions` where its rows stand, which may then be
            dealt out in another order.
        compute_dtype: what weights are cast to for use, or None to use them as they are.
        data: what the model is usually trained on: a catalogue name, or a Dataset.
        config: the frozen record of sizes that `build` closes over, or None.
        remake: `remake(config) -> Model`, so that one field can be changed from outside.
        trainable: Flax filter of the variables that are learned.
        dims: path of a variable -> a name for each of its dims, where Flax's metadata has none.
        units: dim -> into how many shards it can be split at most; such a dim is replicated, and
            the layout says so, where a mesh asks for a number that does not divide that.
        read_at: path of a weight -> the line of such a model that first reads it.
        named: what was found out about a model that nobody annotated, a record a class of dims.
        example: field name -> values of an example batch, or None where only shapes are known.
        notes: what a person should know of how the model was read, a sentence each.
        aside: the sharding constraints of such a model, which its layout sets aside.
        annotate: (traced loss as a ClosedJaxpr, its abstract arguments by path, paths of weights)
            -> the same with the dims of its arrays named in it; None for a loss that names them
            itself.
        cuts: path of a weight that is stored in pieces -> how it is cut.
        written: the model with those weights whole, as its author wrote it; None where none is cut.
        traced: what was traced of this model before, so that it is not again; see
            `jaxpar.inference.traced`.
    """

    name: str
    build: Callable[[nnx.Rngs], nnx.Module]
    loss: Callable[..., tuple[Mean, dict[str, Mean]]]
    batch: Mapping[str, Field]
    roles: Mapping[str, str] = field(default_factory=dict)
    hooks: tuple[str, ...] = ()
    compute_dtype: str | None = None
    data: Any = None
    config: Any = None
    remake: Callable[[Any], "Model"] | None = None
    trainable: Any = nnx.Param
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    named: tuple[Any, ...] = ()
    read_at: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    aside: tuple[Any, ...] = ()
    annotate: Callable[..., Any] | None = None
    cuts: Mapping[str, Cut] = field(default_factory=dict)
    written: "Model | None" = field(default=None, repr=False, compare=False)
    traced: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        for role in self.roles.values():
            check_role(role)
        kinds = {p.name: p.kind for p in signature(self.loss).parameters.values()}
        if "key" not in kinds and Parameter.VAR_KEYWORD not in kinds.values():
            raise RequestError(
                f"model '{self.name}': its loss takes no 'key': declare loss(module, batch, *, "
                "key=None), and leave key unused if there is no dropout"
            )
        for table in ("batch", "roles", "dims", "units", "read_at", "cuts"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    def __repr__(self) -> str:
        fields = ", ".join(self.batch)
        return one_line(f"<Model {self.name}: batch of {self.batch_size} rows of {fields}>")

    @property
    def batch_size(self) -> int:
        """Rows in the example batch."""
        return next(iter(self.batch.values())).shape[0]

    def with_batch_size(self, size: int) -> "Model":
        """The same model with an example batch of `size` rows."""
        try:
            size = whole("batch", size, least=1)
        except RequestError:
            raise RequestError(
                f"batch size {size}: a batch has at least one row and {MOST_COUNT:,} at most"
            ) from None
        resized = {name: replace(f, shape=(size, *f.shape[1:])) for name, f in self.batch.items()}
        return replace(self, batch=resized)

    def with_fields(self, **changes: Any) -> "Model":
        """The same model with fields of its config changed; an unknown field is refused."""
        if not changes:
            return self
        if self.config is None or self.remake is None:
            raise RequestError(
                f"model '{self.name}' has no fields to set; edit its factory instead"
            )
        known = [f.name for f in fields(self.config)]
        for name in changes:
            if name not in known:
                raise unknown(f"field of model '{self.name}'", name, known)
        return self.remake(replace(self.config, **changes)).with_batch_size(self.batch_size)


def role_of(model: Model, dim: str) -> str:
    """The role of `dim` in `model`: what the model says, else a role of that name, else feature."""
    return model.roles.get(dim, dim if dim in ROLES else "feature")


@lru_cache(maxsize=32)
def of_catalogue(name: str, **changes: Any) -> Model:
    """A catalogue's model with fields changed; one object, so that cases share what is traced."""
    return MODELS.load(name)().with_fields(**changes)
