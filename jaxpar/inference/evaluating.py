"""Evaluation is evaluation, whatever flag a loss has written in it.

`module.eval()` reaches what Flax's own layers keep as attributes. A flag that a loss or a module
hands on as an argument, `model(x, train=True)`, does not hear of it: it is turned around where it
reaches a Flax module. A Linen module never hears of it, so that there the layers are told too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from inspect import Signature, signature
from typing import Any

import numpy as np
from flax import linen, nnx

FLAGS: Mapping[str, bool] = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
    "is_eval": True,
    "eval_mode": True,
    "update_stats": False,
}
"""What people call the flag, and what it is in evaluation."""


@contextmanager
def evaluating(module: nnx.Module) -> Iterator[None]:
    """While it lasts, every flag that reaches the module or a part of it says evaluation."""
    nodes = {id(node): node for _, node in nnx.iter_modules(module)}.values()
    kinds = [(node, type(node)) for node in nodes if _flags_in(signature_of(type(node)))]
    attributes = [
        (node, name, vars(node)[name])
        for node in nodes
        for name in FLAGS
        if isinstance(vars(node).get(name), bool)
    ]
    for node, kind in kinds:
        node.__class__ = _told(kind)
    for node, name, _ in attributes:
        setattr(node, name, FLAGS[name])
    try:
        with linen.intercept_methods(_intercepted):
            yield
    finally:
        for node, kind in kinds:
            node.__class__ = kind
        for node, name, value in attributes:
            setattr(node, name, value)


def flags_of(function: Callable[..., Any], *, train: bool) -> dict[str, bool]:
    """The flags that a loss takes besides the module and the batch, as they are now."""
    try:
        names = list(signature(function).parameters)[2:]
    except (TypeError, ValueError):  # a function that C wrote says nothing
        return {}
    return {name: FLAGS[name] != train for name in names if name in FLAGS}


@cache
def signature_of(kind: type) -> Signature:
    """Of a module's `__call__`; of a class that has none, an empty one."""
    try:
        return signature(kind.__call__)
    except (TypeError, ValueError, AttributeError):
        return Signature()


@cache
def _told(kind: type) -> type:
    """A subclass of a module's class whose flags are those of evaluation."""
    known, call = signature_of(kind), kind.__call__

    @wraps(call)
    def __call__(self, *args, **kwargs):
        args, kwargs = _turned(known, (self, *args), kwargs)
        return call(*args, **kwargs)

    return type(kind)(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__})


def _intercepted(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    """A method of a Linen module, called with the flags of evaluation."""
    module = context.module
    held = {n: vars(module)[n] for n in FLAGS if isinstance(vars(module).get(n), bool)}
    # Flax's own transforms call functions that the module's class has not.
    method = getattr(type(module), context.method_name, None)
    known = Signature() if method is None else signature(method)
    whole, kwargs = _turned(known, (module, *args), kwargs)
    for name in held:
        object.__setattr__(module, name, FLAGS[name])  # a Linen module is frozen
    try:
        return call(*whole[1:], **kwargs)
    finally:
        for name, value in held.items():
            object.__setattr__(module, name, value)


def _turned(known: Signature, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a call, its flags turned to those of evaluation where they are given."""
    flags = _flags_in(known)
    positions = {name: k for k, name in enumerate(known.parameters) if name in flags}
    args = tuple(
        next((FLAGS[n] for n, k in positions.items() if k == at and _is_flag(x)), x)
        for at, x in enumerate(args)
    )
    turned = {n: FLAGS[n] if n in FLAGS and _is_flag(x) else x for n, x in kwargs.items()}
    return args, turned


def _flags_in(known: Signature) -> set[str]:
    """The flags among the arguments that a call takes by name."""
    return {name for name in known.parameters if name in FLAGS}


def _is_flag(value: Any) -> bool:
    """Whether a value is true or false and no array of a trace."""
    return isinstance(value, bool | np.bool_)
