"""A person's own loss, called as a Model's loss is; plainly, or saying the names of its dims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpar.core import hooks
from jaxpar.core.errors import RequestError
from jaxpar.inference.annotate import speak
from jaxpar.inference.example import Example
from jaxpar.inference.pieces import Cut, whole
from jaxpar.jaxprs.float64 import evaluate_wide
from jaxpar.jaxprs.piecewise import piecewise
from jaxpar.jaxprs.record import FIELD
from jaxpar.jaxprs.unify import relate
from jaxpar.models.modules import Parts, refill, take_apart, values_of
from jaxpar.models.record import Mean


class PlainLoss:
    """`loss(module, batch)` as `(module, fields, key=) -> (Mean, metrics)`.

    A scalar is the mean over the rows of the batch: its weight is their number.
    """

    def __init__(
        self,
        called: str,
        loss: Callable[..., Any],
        example: Example,
        trainable: Any,
        cuts: Mapping[str, Cut] = MappingProxyType({}),
    ):
        self.called, self.loss = called, loss
        self.example, self.trainable, self.cuts = example, trainable, cuts
        self.x64 = jax.config.jax_enable_x64

    def of_pieces(self, cuts: Mapping[str, Cut]) -> PlainLoss:
        """The same loss of a module that holds some weights in pieces."""
        return PlainLoss(self.called, self.loss, self.example, self.trainable, cuts)

    def __call__(self, module: nnx.Module, batch: Mapping[str, Any], *, key: Any = None):
        """Call it; `key` is not needed, as a Flax module keeps random streams of its own."""
        rows = next(iter(batch.values())).shape[0]
        with whole(module, self.cuts):
            returned = self.loss(module, self.example.assembled(batch))
        nnx.pop(module, nnx.Intermediate)
        value, metrics = returned if isinstance(returned, tuple) and returned else (returned, {})
        metrics = metrics if isinstance(metrics, dict) else {}
        if isinstance(value, Mean):
            return value, {n: m for n, m in metrics.items() if isinstance(m, Mean)}
        if not isinstance(value, jax.Array | float | np.ndarray | np.floating):
            raise self._no_number(f"a {type(value).__name__}")
        if jnp.shape(value) != ():
            raise self._no_number(f"an array of shape {jnp.shape(value)}")
        scalars = {n: v for n, v in metrics.items() if n != "loss" and _is_scalar(v)}
        return _weighed(value, rows), {n: _weighed(v, rows) for n, v in scalars.items()}

    def _no_number(self, what: str) -> RequestError:
        return RequestError(
            f"model '{self.called}': its loss returned {what}, and a loss is one number: return "
            "its mean over the batch, as a scalar or as (scalar, metrics)"
        )


def _is_scalar(value: Any) -> bool:
    return isinstance(value, jax.Array | float | int | np.generic) and jnp.shape(value) == ()


def _weighed(value: Any, rows: int) -> Mean:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    return Mean(value * rows, jnp.full((), rows, value.dtype))


class SpokenLoss:
    """The same loss; while a step places what models name, it says the names of its dims."""

    def __init__(
        self,
        plain: PlainLoss,
        dims: Mapping[str, tuple[str, ...]],
        residual: frozenset[str],
        dtypes: Mapping[str, Any],
    ):
        self.plain, self.dims, self.residual, self.dtypes = plain, dims, residual, dtypes

    @cached_property
    def widened(self) -> SpokenLoss:
        """This loss for arguments in float64."""
        return SpokenLoss(WideLoss(self.plain, self.dtypes), self.dims, self.residual, self.dtypes)

    def __call__(self, module: nnx.Module, batch: Mapping[str, Any], *, key: Any = None):
        """Call it, spoken where somebody listens."""
        if not hooks.is_placing():
            return self.plain(module, batch, key=key)
        parts = take_apart(module, self.plain.trainable)
        values = (values_of(parts.parameters), values_of(parts.state), dict(batch))
        closed, tree, arguments = trace_loss(self.plain, parts, *values)
        closed = piecewise(closed)
        frozen = [path for path, leaf in parts.state.items() if isinstance(leaf, nnx.Param)]
        trace = relate(closed, arguments, [*values[0], *frozen])
        names = {}
        for path, dims in trace.arguments.items():
            for dim, name in zip(dims, self.dims.get(path, ()), strict=False):
                nodes, said = trace.classes.resolve(dim), name.split("*")
                if len(nodes) == len(said):
                    names |= dict(zip(nodes, said, strict=True))
        results = speak(closed, trace, names, self.residual, jax.tree.leaves(values))
        loss, metrics, state = jax.tree.unflatten(tree, results)
        refill(module, parts, state)
        return loss, metrics


class WideLoss(PlainLoss):
    """The same loss in float64, whatever it casts to; for float64 arguments."""

    def __init__(self, plain: PlainLoss, dtypes: Mapping[str, Any]):
        super().__init__(plain.called, plain.loss, plain.example, plain.trainable, plain.cuts)
        self.plain, self.dtypes = plain, dtypes

    def __call__(self, module: nnx.Module, batch: Mapping[str, Any], *, key: Any = None):
        """Trace the loss as it is written, and compute what was traced with more digits."""
        parts = take_apart(module, self.trainable)
        values = (values_of(parts.parameters), values_of(parts.state), dict(batch))
        narrow = [
            {
                path: jax.ShapeDtypeStruct(x.shape, self._dtype(label + path, x))
                for path, x in g.items()
            }
            for label, g in zip(("", "", FIELD), values, strict=True)
        ]
        with jax.enable_x64(self.plain.x64):
            closed, tree, _ = trace_loss(self.plain, parts, *narrow)
        results = evaluate_wide(closed.jaxpr, closed.consts, jax.tree.leaves(values))
        loss, metrics, state = jax.tree.unflatten(tree, results)
        refill(module, parts, state)
        return loss, metrics

    def _dtype(self, path, x):
        return self.dtypes.get(path, x.dtype)


def trace_loss(plain: PlainLoss, parts: Parts, parameters, state, batch):
    """Trace a loss on shapes alone, training or not as the module was when it was taken apart.

    Returns:
        Its ClosedJaxpr, whose results are (Mean, metrics, state by path); the tree of these; and
        the abstract arguments by path, those of the batch with `FIELD` before their names.

    Raises:
        RequestError: the module has other variables after the call than before.
    """

    def function(parameters, state, batch):
        module = parts.put_together(parameters, state)
        loss, metrics = plain(module, batch)
        after = take_apart(module, plain.trainable)
        _check_variables(plain.called, parts, after)
        return loss, metrics, values_of(after.state)

    groups = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (parameters, state, dict(batch))
    )
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*groups)
    labels = ("", "", FIELD)
    arguments = {
        label + path: group[path]
        for label, group in zip(labels, groups, strict=True)
        for path in sorted(group)
    }
    return closed, jax.tree.structure(shapes), arguments


def _check_variables(called: str, before: Parts, after: Parts) -> None:
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
