"""A module made anew from what a person handed in: a module, a class, a factory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from jaxpar.core.errors import RequestError
from jaxpar.inference.linen import from_linen
from jaxpar.inference.losses import PlainLoss
from jaxpar.inference.pieces import cut_in
from jaxpar.models.record import Model


def remade(module: Any, plain: PlainLoss, rngs: nnx.Rngs) -> nnx.Module:
    """Make the module anew, as it was made at first, ready to be trained.

    Args:
        module: an NNX module, which keeps its values; a Linen module; or a factory of either.
        plain: its loss, which says what is stored in pieces.
        rngs: what a factory draws from.

    Raises:
        RequestError: it is no module and no factory of one.
    """
    with jax.enable_x64(plain.x64):
        made = _made(module, plain, rngs)
    made.train()
    cut_in(made, plain.trainable, plain.cuts)
    return made


def _made(module: Any, plain: PlainLoss, rngs: nnx.Rngs) -> nnx.Module:
    """The nnx.Module of a module or of a factory of one; RequestError for anything else."""
    made, called, example = module, plain.called, plain.example
    if not isinstance(module, nnx.Module | linen.Module):
        made = _call_factory(called, module, rngs)
    if isinstance(made, linen.Module):
        return from_linen(made, rngs, lambda m: plain.called_on(m, example.zeros(), train=True))
    if isinstance(made, Model) or not isinstance(made, nnx.Module):
        raise RequestError(
            f"model '{called}': expected a Flax module or a factory of one, and got "
            f"{type(made).__name__}: give an nnx.Module, a linen.Module, or a function that "
            "returns one"
        )
    _keep_arrays(made)
    graph, state = nnx.split(made)
    if made is module and any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(state)):
        raise RequestError(
            f"model '{called}': its arrays are only shapes, so it cannot be initialised: give the "
            "factory that makes it"
        )
    return nnx.merge(graph, jax.tree.map(jnp.asarray, state))


def _keep_arrays(module: nnx.Module) -> None:
    """Let Flax know of arrays that are attributes as they are, such as a table of positions.

    While a module is traced Flax takes them for structure, and they would escape the trace.
    """
    for _, node in list(nnx.iter_modules(module)):
        for name, value in list(vars(node).items()):
            if isinstance(value, jax.Array):
                setattr(node, name, nnx.data(value))


def _call_factory(called: str, factory: Any, rngs: nnx.Rngs) -> Any:
    """What a factory returns, given `rngs` if it takes them; RequestError if it needs more."""
    if not callable(factory):
        raise RequestError(
            f"model '{called}': expected a Flax module or a factory of one, and got "
            f"{type(factory).__name__}"
        )
    try:
        parameters = _parameters(factory)
    except (TypeError, ValueError):
        return factory()
    if "rngs" in parameters:
        return factory(rngs=rngs)
    required = [
        p
        for p in parameters.values()
        if p.default is Parameter.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return factory(rngs) if len(required) == 1 else factory()


def _parameters(factory: Any) -> Mapping[str, Parameter]:
    """The names of the arguments that a factory takes."""
    if isinstance(factory, partial):
        left = [*_parameters(factory.func).values()][len(factory.args) :]
        return {p.name: p for p in left if p.name not in factory.keywords}
    if isinstance(factory, type):  # Flax's classes are called by their metaclass, taking anything
        return dict([*signature(factory.__init__).parameters.items()][1:])
    return signature(factory).parameters
