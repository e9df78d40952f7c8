"""A person's own loss, called as a Model's loss is; and the same with more digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import setting
from jaxpar.inference.evaluating import evaluating, flags_of
from jaxpar.inference.example import Example
from jaxpar.inference.pieces import whole
from jaxpar.jaxprs.float64 import evaluate_wide
from jaxpar.jaxprs.record import FIELD
from jaxpar.models.modules import Parts, refill, take_apart, values_of
from jaxpar.models.pieces import Cut
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
        dtypes: Mapping[str, Any] = MappingProxyType({}),
    ):
        """Of a loss `called` so; `dtypes` are those it is traced with, by path of an argument."""
        self.called, self.loss = called, loss
        self.example, self.trainable, self.cuts, self.dtypes = example, trainable, cuts, dtypes
        self.x64 = setting("jax_enable_x64")

    def of_pieces(self, cuts: Mapping[str, Cut]) -> PlainLoss:
        """The same loss of a module that holds some weights in pieces."""
        return PlainLoss(self.called, self.loss, self.example, self.trainable, cuts)

    def of_dtypes(self, dtypes: Mapping[str, Any]) -> PlainLoss:
        """The same loss, knowing the dtype of each of its arguments."""
        return PlainLoss(self.called, self.loss, self.example, self.trainable, self.cuts, dtypes)

    @cached_property
    def widened(self) -> WideLoss:
        """The same loss in float64, for arguments in float64."""
        return WideLoss(self)

    def __call__(self, module: nnx.Module, batch: Mapping[str, Any], *, key: Any = None):
        """Call it, in training if there is a `key`; a Flax module draws from streams of its own."""
        rows = next(iter(batch.values())).shape[0]
        train = key is not None
        with whole(module, self.cuts), nullcontext() if train else evaluating(module):
            returned = self.called_on(module, self.example.assembled(batch), train=train)
        nnx.pop(module, nnx.Intermediate)
        if isinstance(returned, tuple) and len(returned) != 2:
            raise self._no_number(f"a tuple of {len(returned)}")
        value, metrics = returned if isinstance(returned, tuple) else (returned, {})
        metrics = metrics if isinstance(metrics, dict) else {}
        if isinstance(value, Mean):
            return value, {n: m for n, m in metrics.items() if isinstance(m, Mean)}
        if not isinstance(value, jax.Array | float | np.ndarray | np.floating):
            raise self._no_number(f"a {type(value).__name__}")
        if jnp.shape(value) != ():
            raise self._no_number(f"an array of shape {jnp.shape(value)}")
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise self._no_number(f"a number of dtype {jnp.result_type(value)}")
        scalars = {n: v for n, v in metrics.items() if n != "loss" and not isinstance(v, Mean)}
        for name, metric in scalars.items():
            self._check_metric(name, metric)
        return _weighed(value, rows), {n: _weighed(v, rows) for n, v in scalars.items()}

    def called_on(self, module: Any, batch: Any, *, train: bool) -> Any:
        """What the person's function returns, told of training if it asks to be."""
        return self.loss(module, batch, **flags_of(self.loss, train=train))

    def _no_number(self, what: str) -> RequestError:
        """The error for a loss that returned `what` and not a scalar."""
        return RequestError(
            f"model '{self.called}': its loss returned {what}, and a loss is one real number with "
            "a fraction: return its mean over the batch, as a scalar or as (scalar, metrics)"
        )

    def _check_metric(self, name: Any, value: Any) -> None:
        """Refuse an entry of the metrics that is no real number."""
        numeric = isinstance(value, jax.Array | float | int | np.generic | np.ndarray)
        if not numeric or jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
            what = f"of dtype {jnp.result_type(value)}" if numeric else f"a {type(value).__name__}"
        elif jnp.shape(value) == () and isinstance(name, str):
            return
        else:
            what = f"an array of shape {jnp.shape(value)}"
        raise RequestError(
            f"model '{self.called}': metric {name!r} is {what}, and metrics are real numbers by "
            "name: return its mean over the batch, or leave it out"
        )


def _weighed(value: Any, rows: int) -> Mean:
    """A mean over `rows` rows as a Mean that weighs as many."""
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.float32)
    return Mean(value * rows, jnp.full((), rows, value.dtype))


class WideLoss:
    """A plain loss in float64, whatever it casts to; for float64 arguments."""

    def __init__(self, plain: PlainLoss):
        """From the loss as the user wrote it."""
        self.plain = plain

    def __call__(self, module: nnx.Module, batch: Mapping[str, Any], *, key: Any = None):
        """Trace the loss as it is written, and compute what was traced with more digits."""
        parts = take_apart(module, self.plain.trainable)
        values = (values_of(parts.parameters), values_of(parts.state), dict(batch))
        narrow = [
            {
                path: jax.ShapeDtypeStruct(x.shape, self._dtype(label + path, x))
                for path, x in g.items()
            }
            for label, g in zip(("", "", FIELD), values, strict=True)
        ]
        with jax.enable_x64(self.plain.x64):
            closed, tree = trace_plain(self.plain, parts, *narrow, train=key is not None)
        results = evaluate_wide(closed.jaxpr, closed.consts, jax.tree.leaves(values))
        loss, metrics, state = jax.tree.unflatten(tree, results)
        refill(module, parts, state)
        return loss, metrics

    def _dtype(self, path: str, x: Any) -> Any:
        """The dtype in which the user's loss has the array at `path`."""
        return self.plain.dtypes.get(path, x.dtype)


def trace_plain(plain: PlainLoss, parts: Parts, parameters, state, batch, *, train: bool):
    """Trace a plain loss on shapes, of a module that was in training or not when taken apart.

    Returns:
        Its ClosedJaxpr, whose results are (Mean, metrics, state by path), and the tree of these.
    """

    def function(parameters, state, batch):
        module = parts.put_together(parameters, state)
        loss, metrics = plain(module, batch, key=jax.random.key(0) if train else None)
        return loss, metrics, values_of(take_apart(module, plain.trainable).state)

    closed, shapes = jax.make_jaxpr(function, return_shape=True)(parameters, state, batch)
    return closed, jax.tree.structure(shapes)
