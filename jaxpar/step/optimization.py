"""An optimizer applied to a model's own parameters, however these are stored.

It is given Flax's tree with whole weights. Where some are stored in pieces, what it computes is
traced on whole ones and evaluated in pieces wherever that is the same; an operation that needs a
whole matrix, as an orthogonalisation does, gets it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpar.core.errors import RequestError
from jaxpar.core.jax_compat import setting
from jaxpar.inference.calling import trying
from jaxpar.jaxprs.piecewise import Pieces, evaluated_in_pieces, whole
from jaxpar.layout.record import Layout
from jaxpar.step.own_tree import OwnTree, abstract
from jaxpar.step.updated import updated


class Optimization:
    """`init` and `update` of an optimizer for parameters by path of storage.

    Its state is the optimizer's own, with `Pieces` in place of what has the shape of a weight that
    is stored in pieces.
    """

    def __init__(self, optimizer: optax.GradientTransformation, layout: Layout):
        """Of any optax transformation, for the parameters of a layout."""
        self.own, self.model = OwnTree.of(layout), layout.model.name
        self.optimizer = optimizer

    def init(self, parameters: Mapping[str, Any]) -> Any:
        """The state before the first update."""
        tree = self._tree(parameters)
        state = _asked(self.model, lambda: self._evaluated(self.optimizer.init, tree))
        for leaf in jax.tree.leaves(state):
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int):
                raise RequestError(
                    f"model '{self.model}': its optimizer's state holds a {type(leaf).__name__}, "
                    "and a step keeps arrays: leave what is none out of what init returns"
                )
        return state

    def update(
        self,
        gradients: Mapping[str, Any],
        state: Any,
        parameters: Mapping[str, Any],
        value: Any,
    ) -> tuple[dict[str, Any], Any]:
        """What is added to each parameter, by path of storage, and the new state.

        `value` is the loss that the gradients are of; an optimizer that asks for it gets it.

        Raises:
            RequestError: the optimizer asks for what a step does not have, or raises an error.
        """

        def function(gradients, state, parameters, value):
            return updated(self.optimizer, gradients, state, parameters, value)

        arguments = (self._tree(gradients), state, self._tree(parameters), value)
        updates, state = _asked(self.model, lambda: self._evaluated(function, *arguments))
        if _shapes(updates) != _shapes(arguments[2]):
            raise RequestError(
                f"model '{self.model}': its optimizer's updates are no tree like the parameters', "
                "each of its parameter's shape: return what is to be added to each"
            )
        return self.own.stored(self.own.by_path(updates)), state

    def check(self, parameters: Mapping[str, Any], state: Any) -> None:
        """Refuse an optimizer that a step cannot use; shapes alone are looked at.

        Raises:
            RequestError: it asks for more than there is, or its state changes its shape.
        """
        own = None if self.own.cuts else _kinds(self._tree(parameters))
        about = (own, _kinds(state), setting("jax_enable_x64"))
        passed = set() if own is None else _passed(self.optimizer, about)
        if about in passed:
            return
        loss = jax.ShapeDtypeStruct((), next(iter(parameters.values())).dtype)
        _, after = jax.eval_shape(self.update, parameters, state, parameters, loss)
        if _kinds(after) != _kinds(state):
            raise RequestError(
                f"model '{self.model}': its optimizer's state has other shapes after an update, "
                "and a step is compiled once: make what it holds in init"
            )
        passed.add(about)

    def _tree(self, stored: Mapping[str, Any]) -> dict:
        """The model's own tree of arrays by path of storage, pieces as `Pieces`."""
        return self.own.nested(self.own.whole(stored))

    def _evaluated(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` makes of trees that hold `Pieces`, traced as if it were given none."""
        if not self.own.cuts:
            return function(*arguments)
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*map(abstract, arguments))
        results = evaluated_in_pieces(closed, jax.tree.leaves(arguments, is_leaf=_in_pieces))
        leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
        pairs = zip(leaves, results, strict=True)
        return jax.tree.unflatten(tree, [self._as_kept(keys, x) for (keys, _), x in pairs])

    def _as_kept(self, keys: tuple[Any, ...], value: Any) -> Any:
        """A result in pieces if it has the shape of a weight that is, whole if it has not."""
        path, shape = self.own.path_at(keys), abstract(value).shape
        if path is not None and path in self.own.cuts:
            lead = len(shape) - len(self.own.shapes[path])
            if lead >= 0 and shape[lead:] == self.own.shapes[path]:
                return self.own.apart(path, value, lead)
        return jnp.asarray(whole(value))  # a constant of the optimizer's comes as Python's number


_PASSED: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
"""Of an optimizer's update: the trees of parameters and state that it was seen to be right for."""


def _passed(optimizer: optax.GradientTransformation, about: Hashable) -> set[Any]:
    """What an optimizer was seen to be right for; of one that cannot be remembered an empty set.

    To trace its update is half of what it takes to make a step.
    """
    try:
        hash(about)
        return _PASSED.setdefault(optimizer.update, set())
    except TypeError:  # not every callable can be hashed, nor referred to weakly
        return set()


def _kinds(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a tree of abstract arrays is, and their shapes and dtypes."""
    leaves, kind = jax.tree.flatten(tree)
    return kind, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _shapes(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """What a tree is, and the shapes of its arrays, pieces as what they make together."""
    leaves, kind = jax.tree.flatten(abstract(tree))
    return kind, [leaf.shape for leaf in leaves]


def _in_pieces(value: Any) -> bool:
    """Whether a node of a tree stands for one array."""
    return isinstance(value, Pieces)


def _asked(model: str, function: Callable[[], Any]) -> Any:
    """What an optimizer's own code gives; RequestError for whatever it raises."""
    try:
        return trying(model, "its optimizer", function)
    except RequestError as error:
        cause = error.__cause__
        if isinstance(cause, AttributeError) and cause.name in optax.LookaheadParams._fields:
            raise RequestError(
                f"model '{model}': its optimizer is optax.lookahead, which has a slow copy of the "
                "parameters beside them, and a step has the parameters alone: use the optimizer "
                "that it wraps, or one that keeps a copy in its own state, such as "
                "optax.contrib.schedule_free_adamw"
            ) from cause
        missing = isinstance(cause, TypeError) and "required keyword-only" in str(cause)
        names = re.findall(r"'(\w+)'", str(cause)) if missing else []
        if not names:
            raise
        raise RequestError(
            f"model '{model}': its optimizer asks for {', '.join(names)}, and a step gives an "
            "optimizer the gradients, the loss and the parameters once an update: use one that "
            "does not call the loss again, such as optax.lbfgs with linesearch=None"
        ) from cause
