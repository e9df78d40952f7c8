"""The one door: any Flax module, its loss and an example batch, made into a `Model`.

The module may be NNX or Linen and need not know that it will be split. Its loss is traced once, on
shapes alone; from the trace every dim gets its name and role, every integer field its range, and
what is wrong with a model is found before anything is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.core.errors import RequestError, unknown
from jaxpar.core.roles import check_role
from jaxpar.inference.annotate import annotated
from jaxpar.inference.arguments import check_arguments
from jaxpar.inference.aside import notes_aside, read_aside
from jaxpar.inference.build import remade
from jaxpar.inference.calling import check_differentiable, check_placed, trying
from jaxpar.inference.example import read_example
from jaxpar.inference.judge import judge
from jaxpar.inference.losses import PlainLoss
from jaxpar.inference.names import christen
from jaxpar.inference.pieces import held, worth_cutting
from jaxpar.inference.record import KEY, TracedLoss
from jaxpar.inference.traced import module_of, remember, traced_loss
from jaxpar.jaxprs.piecewise import piecewise
from jaxpar.jaxprs.record import FIELD
from jaxpar.jaxprs.spell import names_of
from jaxpar.jaxprs.unify import relate
from jaxpar.models.modules import Parts, names_in_metadata, values_of
from jaxpar.models.pieces import Cut, pieces_of
from jaxpar.models.record import Model


def model(
    module: Any,
    loss: Callable[..., Any] | None = None,
    batch: Any = None,
    *,
    name: str | None = None,
    dims: Mapping[str, tuple[str | None, ...]] | None = None,
    roles: Mapping[str, str] | None = None,
    trainable: Any = nnx.Param,
    data: Any = None,
) -> Model:
    """Make a Model of a Flax module that was not written for jaxpar.

    Args:
        module: an NNX module; a factory of one, which may take `rngs`; or a Linen module or its
            factory. A factory is better where the module is large: it is then made in pieces.
        loss: `loss(model, batch)`, a scalar or (scalar, {name: scalar}); the mean over the rows of
            the batch. A Linen module is called as an NNX one is, `model(x, train=True)`, and keeps
            its variables to itself. None stands for the mean square of what the module returns:
            enough to see traffic and memory.
        batch: an example, a tree of arrays or of `jax.ShapeDtypeStruct`s, whose first dim is the
            batch. Arrays are also what a layout is tried on.
        name: for people; that of the module's class or factory if None.
        dims: path of a variable, or `batch/` and the path of a field -> names of its dims, None for
            one that should be found out.
        roles: dim -> role, where you know better than what was found.
        trainable: Flax filter of the variables that are learned; the others are frozen.
        data: what it is usually trained on: a catalogue name, or a Dataset such as
            `jaxpar.data.iterable.dataset` makes of your batches.

    Raises:
        RequestError: a loss that is no scalar, a batch without a common first dim, a module that
            grows variables while it is called, a name for what is not there; and what the module
            or the loss itself raises, with its line.

    >>> import jax
    >>> from flax import nnx
    >>> def net(rngs):
    ...     return nnx.Sequential(nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs))
    >>> batch = {"x": jax.ShapeDtypeStruct((16, 8), "float32")}
    >>> m = model(net, lambda net, batch: (net(batch["x"]) ** 2).mean(), batch)
    >>> [(dim.name, dim.role, dim.size) for dim in m.named if dim.role == "inner"]
    [('ffn', 'inner', 32)]
    """
    check_arguments(name, dims, roles, data)
    called = name or _name_of(module)
    example = read_example(called, batch)
    given = _mean_square if loss is None else loss

    def read(loss):
        plain = PlainLoss(called, loss, example, trainable)
        bare = Model(
            name=called,
            build=partial(remade, module, plain),
            loss=plain,
            batch=example.fields({}, {}),
            trainable=trainable,
            data=data,
            example=example.arrays,
        )
        parts = trying(called, "making it", lambda: module_of(bare))
        if not parts.parameters:
            raise RequestError(
                f"model '{called}' has nothing to learn: none of its variables is of the type that "
                "trainable= names (nnx.Param unless you say otherwise)"
            )
        for path, weight in values_of(parts.parameters).items():
            if not jnp.issubdtype(weight.dtype, jnp.inexact):
                raise RequestError(
                    f"model '{called}': '{path}' holds {weight.dtype}, and what is learned has a "
                    "gradient: make it a float, or an nnx.Variable that is no nnx.Param"
                )
        return plain, bare, parts, trying(called, "calling its loss", lambda: traced_loss(bare))

    (plain, bare, parts, traced), aside, constraints = read_aside(given, read)
    check_placed(called, traced)
    check_differentiable(called, traced)
    closed, arguments = traced.closed, traced.arguments
    dims = _checked(called, dims or {}, arguments)
    fields = {path: leaf for path, leaf in arguments.items() if path.startswith(FIELD)}
    never: set[str] = set()
    written = replace(bare, loss=plain.of_dtypes({path: a.dtype for path, a in arguments.items()}))
    results = [*[""] * traced.tree.num_leaves, *traced.state]
    cuts, why = worth_cutting(closed, arguments, traced.weights, fields, results)
    while cuts:
        in_pieces = plain.of_pieces(cuts)
        build = partial(remade, module, in_pieces)
        cut = replace(bare, loss=in_pieces, build=build, cuts=cuts, written=written)
        taken = module_of(cut)
        alike = {path: c for path, c in cuts.items() if _learned_alike(path, parts, taken, cuts)}
        if alike == cuts:
            plain, bare, parts = in_pieces, cut, taken
            traced = in_parts(traced, cuts)
            dims = {piece: dims[path] for path in dims for piece in pieces_of(path, cuts)}
            break
        never |= cuts.keys() - alike.keys()
        cuts, why = worth_cutting(closed, arguments, traced.weights, fields, results, never)
    notes = notes_aside(*aside)
    if given is _mean_square:
        notes.append(
            "the model came without a loss: the mean square of what it returns stands for one"
        )
    named = _named(bare, plain, example, parts, traced, dims, roles or {}, why, notes)
    return replace(named, aside=constraints)


def in_parts(traced: TracedLoss, cuts: Mapping[str, Cut]) -> TracedLoss:
    """The traced loss with these weights as arguments in pieces."""
    closed, arguments = held(traced.closed, traced.arguments, cuts)
    state = [piece for path in traced.state for piece in pieces_of(path, cuts)]
    weights = [piece for path in traced.weights for piece in pieces_of(path, cuts)]
    return TracedLoss(closed, arguments, traced.tree, tuple(state), tuple(weights))


@dataclass(frozen=True)
class Annotation:
    """What was found out about a loss's dims, to be said in every trace of it.

    Attributes:
        dims: path of an argument -> a name for each of its dims.
        residual: names of the widths that run through the whole network.
    """

    dims: Mapping[str, tuple[str, ...]]
    residual: frozenset[str]

    def __call__(self, closed: Any, arguments: Mapping[str, Any], weights: Sequence[str]) -> Any:
        """The loss, computed in pieces where it is cut anyway, its dims named."""
        closed = piecewise(closed)
        trace = relate(closed, arguments, weights)
        return annotated(closed, trace, names_of(trace, self.dims), self.residual)


def _learned_alike(path: str, parts: Parts, taken: Parts, cuts: Mapping[str, Any]) -> bool:
    """Whether a weight's pieces are there, and learned if it was.

    A filter may look at the end of a path, and a tuple cannot hold another thing.
    """
    group = "parameters" if path in parts.parameters else "state"
    return all(piece in getattr(taken, group) for piece in pieces_of(path, cuts))


def _checked(called: str, dims: Mapping[str, Any], arguments: Mapping[str, Any]):
    """The names that were given, if they are as many as there are dims."""
    for path in dims:
        if path not in arguments:
            raise unknown(f"path in dims of model '{called}'", path, list(arguments))
        if len(dims[path]) != len(arguments[path].shape):
            raise RequestError(
                f"model '{called}': dims gives '{path}' {len(dims[path])} names, and its shape "
                f"is {arguments[path].shape}: name every dim, with None for one to be found out"
            )
    return dims


def _named(bare, plain, example, parts, traced, dims, roles, why, notes) -> Model:
    """The model with names, roles, units and notes from its trace; `why` tells of its matrices
    what no trace of them whole does."""
    arguments = {path: a for path, a in traced.arguments.items() if path != KEY}
    fields = {path: leaf for path, leaf in arguments.items() if path.startswith(FIELD)}
    weights = {path: arguments[path] for path in traced.weights}
    trace = relate(piecewise(traced.closed), traced.arguments, traced.weights)
    judgement = judge(trace, weights, fields, why)
    metadata = {
        path: names
        for path, leaf in (*parts.parameters.items(), *parts.state.items())
        if (names := names_in_metadata(leaf)) and len(names) == len(arguments[path].shape)
    }
    names = christen(trace, judgement, fields=list(fields), given={**metadata, **dims}, told=roles)
    for dim, role in roles.items():
        check_role(role)
        if dim not in names.roles:
            raise unknown(f"dim in roles of model '{bare.name}'", dim, list(names.roles))
    of_fields = {path[len(FIELD) :]: names.of[path] for path in fields}
    below = {path[len(FIELD) :]: sizes for path, sizes in trace.below.items() if path in fields}
    residual = frozenset(n for n, role in names.roles.items() if role == "residual")
    named = replace(
        bare,
        loss=plain.of_dtypes({path: a.dtype for path, a in arguments.items()}),
        batch=example.fields(of_fields, below),
        roles=names.roles,
        dims={path: dims for path, dims in names.of.items() if path not in fields},
        units=names.units,
        named=names.dims,
        read_at=judgement.read_at,
        notes=(*notes, *_notes(trace, plain.cuts)),
        annotate=Annotation(names.of, residual),
    )
    remember(named, traced)
    return named


def _notes(trace, cuts) -> tuple[str, ...]:
    """What a person should know of how a plain model was read, a sentence each."""
    notes = []
    if trace.unknown:
        notes.append(
            f"no rule relates the dims of {', '.join(sorted(trace.unknown))}: they were taken for "
            "unrelated, and stay replicated"
        )
    if cuts:
        alike = dict.fromkeys(re.sub(r"(?<![^\W_])\d+\b", "*", path) for path in cuts)
        notes.append(
            "stored in pieces, as the loss splits what it makes or joins what it reads: "
            f"{', '.join(alike)}; so each piece can be sharded by the same heads or columns"
        )
    return tuple(notes)


def _mean_square(module: Any, batch: Any) -> jax.Array:
    """The mean square of what a module returns: the loss of a model without one."""
    if isinstance(batch, dict):
        made = module(**batch)
    elif isinstance(batch, tuple | list):
        made = module(*batch)
    else:
        made = module(batch)
    floats = [x for x in jax.tree.leaves(made) if jnp.issubdtype(x.dtype, jnp.floating)]
    total: Any = sum(jnp.mean(jnp.square(x)) for x in floats)
    return total


def _name_of(module: Any) -> str:
    """The name that a module's class or a factory has, in lower case."""
    named = isinstance(getattr(module, "__name__", None), str)
    return (module.__name__ if named else type(module).__name__).strip("<>").lower()
