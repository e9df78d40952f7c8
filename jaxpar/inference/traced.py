"""A model's loss, called by Python once for each number of rows, and a jaxpr from then on.

The model's annotations are in the jaxpr, as primitives (`jaxpar.core.annotations`) or
as the paths of its arguments. Whoever lays out, differentiates, types or compiles reads that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh

from jaxpar.core import hooks
from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import setting
from jaxpar.inference.losses import PlainLoss, WideLoss
from jaxpar.inference.record import KEY, TracedLoss
from jaxpar.inference.weight import weighed
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.record import FIELD
from jaxpar.models.modules import Parts, abstract, take_apart, values_of
from jaxpar.models.record import Mean, Model

_HOOKS = {"through": hooks.layers, "attend": hooks.attend}
"""What a loss is given for the hooks that it takes: each is a primitive in the jaxpr."""


def traced_loss(model: Model, *, train: bool = True) -> TracedLoss:
    """The loss of a model on a batch of its size, traced when it is first asked for.

    Args:
        model: whose `batch` gives the shapes.
        train: whether in training, with dropout and changing statistics, or else in evaluation.

    Raises:
        RequestError: the loss returns no (Mean, {name: Mean}), or the module has other variables
            after the call than before.
    """
    about = _about(model, train)
    if model.annotate is None:
        return once(model, about, lambda: _trace(model, module_of(model), train))
    return once(model, (*about, _known(model.annotate)), lambda: _annotated(model, train))


def remember(model: Model, traced: TracedLoss) -> None:
    """Let `traced` be what the model's loss is in training, before it is annotated."""
    once(model, _about(model, True), lambda: traced)


def loss_of_rows(model: Model) -> tuple[Any, ...]:
    """What a loss of a batch is known by, among all that is kept of a model."""
    fields = tuple((name, f.shape, f.dtype) for name, f in model.batch.items())
    return ("loss", _known(model.loss), model.hooks, fields)


def _about(model: Model, train: bool) -> tuple[Any, ...]:
    """What a trace of a model's loss depends on."""
    return (*loss_of_rows(model), train)


def _annotated(model: Model, train: bool) -> TracedLoss:
    """The loss with the names that were found for its dims."""
    plain = traced_loss(replace(model, annotate=None), train=train)
    assert model.annotate is not None, model.name
    closed = model.annotate(plain.closed, plain.arguments, plain.weights)
    return replace(plain, closed=closed)


def module_of(model: Model) -> Parts:
    """The model's module taken apart, its arrays as shapes; built when it is first asked for."""
    return once(model, ("module",), lambda: abstract(model))


def once(model: Model, about: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gives, made once for a model's module, a precision, and `about` what it is."""
    build = (_known(model.build), _known(model.trainable), model.compute_dtype)
    key = (*about, *build, setting("jax_enable_x64"))
    if key not in model.traced:
        # What is known by its identity must not be forgotten while the identity is in a key.
        model.traced[key] = (make(), (model.loss, model.build, model.trainable, model.annotate))
    return model.traced[key][0]


def _known(value: Any) -> Any:
    """What a value is known by: itself where it can be hashed, else its identity."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _trace(model: Model, parts: Parts, train: bool) -> TracedLoss:
    """The loss as a jaxpr, by calling it on shapes alone."""
    batch = {n: jax.ShapeDtypeStruct(f.shape, f.dtype) for n, f in model.batch.items()}
    chosen = {name: hook for name, hook in _HOOKS.items() if name in model.hooks}

    changed: list[str] = []

    def function(parameters, state, batch, keys):
        module = parts.put_together(parameters, state)
        module.train() if train else module.eval()
        loss, metrics = checked(model, model.loss(module, batch, key=keys.get(KEY), **chosen))
        after = take_apart(module, model.trainable)
        _check_variables(model.name, parts, after)
        left = values_of(after.state)
        changed.extend(p for p, v in left.items() if v is not state[p] and _is_float(v))
        return (loss, metrics), left if train else state

    keys = {KEY: jax.eval_shape(lambda: jax.random.key(0))} if train else {}
    groups = _abstract((values_of(parts.parameters), values_of(parts.state), batch, keys))
    # A step may ask for it inside a shard_map: what is kept must know of no mesh.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*groups)
    labels = ("", "", FIELD, "")
    arguments = {
        label + path: group[path]
        for label, group in zip(labels, groups, strict=True)
        for path in sorted(group)
    }
    scored, state = shapes
    tree, names = jax.tree.structure(scored), tuple(sorted(state))
    says = () if train else _against_evaluation(closed, changed)
    traced = TracedLoss(closed, arguments, tree, names, tuple(weights_of(parts)), says)
    plain = isinstance(model.loss, PlainLoss | WideLoss)
    return weighed(traced, list(parts.parameters)) if plain else traced


def _against_evaluation(closed: Any, changed: list[str]) -> tuple[str, ...]:
    """What of an evaluation is training's, a sentence each."""
    says = []
    if any(eqn.primitive.name == "random_bits" for eqn, _ in equations(closed)):
        says.append("evaluation draws random numbers, as dropout does in training")
    if changed:
        says.append(
            f"evaluation changes {', '.join(changed[:3])}, as batch statistics do in training"
        )
    repair = "take a flag in the loss, loss(model, batch, train), and hand it to the model"
    return tuple(f"{said}: {repair}" for said in says)


def _is_float(value: Any) -> bool:
    """Whether an array holds floats: statistics, where a count or a key of a stream is not."""
    return jax.numpy.issubdtype(value.dtype, jax.numpy.floating)


def weights_of(parts: Parts) -> list[str]:
    """Paths of what is learned, and of what would be if it were not frozen."""
    frozen = [path for path, leaf in parts.state.items() if isinstance(leaf, nnx.Param)]
    return [*parts.parameters, *frozen]


def _abstract(tree: Any) -> Any:
    """A tree of arrays as a tree of jax.ShapeDtypeStruct."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def checked(model: Model, returned: Any) -> tuple[Mean, dict[str, Mean]]:
    """What a loss returned, if it is what a Model's loss returns."""
    pair = isinstance(returned, tuple) and len(returned) == 2
    if pair and isinstance(returned[0], Mean) and isinstance(returned[1], dict):
        if all(isinstance(metric, Mean) for metric in returned[1].values()):
            return returned
    raise RequestError(
        f"model '{model.name}': its loss returned {type(returned).__name__}, and a loss "
        "returns (Mean, {name: Mean}): return (jaxpar.weighted_mean(values, batch['weight']), {})"
    )


def _check_variables(called: str, before: Parts, after: Parts) -> None:
    """Refuse a call that made variables, or lost some."""
    paths = [set(parts.parameters) | set(parts.state) for parts in (before, after)]
    if grown := sorted(paths[1] - paths[0]):
        raise RequestError(
            f"model '{called}': calling it made {', '.join(grown[:4])}, which it did not have when "
            "it was made, so a step would lose it: make it in __init__ (as an nnx.Variable), or "
            "sow it as an nnx.Intermediate"
        )
    if lost := sorted(paths[0] - paths[1]):
        raise RequestError(
            f"model '{called}': calling it removed {', '.join(lost[:4])}: keep every variable that "
            "the module was made with"
        )
