"""A traced loss taken apart at its stack of layers: what comes before, one layer, what comes after.

The stack is one equation of the jaxpr, the hook `through`; each part is the equations that its
results need. Pure; shapes and types only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxpar.core.errors import LayoutError
from jaxpar.core.hooks import layers
from jaxpar.core.jax_compat import jaxpr_of, with_constants_first
from jaxpar.inference.record import KEY, TracedLoss
from jaxpar.jaxprs.record import FIELD
from jaxpar.jaxprs.rules import rule_of
from jaxpar.layout.record import Layout
from jaxpar.step.filled import Annotated, filled_loss


@dataclass(frozen=True)
class Parts:
    """A loss as three functions of arrays at their global shapes.

    Attributes:
        before: (rest, batch, key) -> [array], the activation that enters the first layer.
        aside: (rest, batch, key) -> [array], what layers are given beside weights and activation:
            first stacks with a leading dim of layers (random keys), then what all layers share.
        stacked_asides: how many of them are stacks.
        layer: (weights, asides, x) -> x, of one layer; weights by path, without the layers dim.
        after: (rest, y, batch, key) -> (Mean, metrics), from what leaves the last layer.
        layer_paths: the parameters that the layers are made of, each with a leading layers dim.
        before_paths, after_paths: those that `before` and `after` read.
        names: of the dims of each array of the activation.
        remat: what is kept from forward for backward; see `hooks.rematerialized`.
        activation, asides: abstract values of the activation and of what `aside` returns.

    `rest` holds the other parameters, by path.
    """

    before: Callable[..., Any]
    aside: Callable[..., Any]
    stacked_asides: int
    layer: Callable[..., Any]
    after: Callable[..., Any]
    layer_paths: tuple[str, ...]
    before_paths: tuple[str, ...]
    after_paths: tuple[str, ...]
    names: list[tuple[str, ...]]
    remat: str
    activation: list[jax.ShapeDtypeStruct]
    asides: tuple[jax.ShapeDtypeStruct, ...]


class _Inlined(Annotated):
    """Evaluates with attention filled in, calls in place, and the stack of layers as it is."""

    through = staticmethod(layers)


def take_apart(layout: Layout, traced: TracedLoss) -> Parts:
    """A traced loss as three functions: before its layers, one layer, after them.

    Args:
        layout: of one microbatch.
        traced: the loss of its model, in training or not.

    Raises:
        LayoutError: the loss changes state, runs no stack of layers or several, reads its layers'
            weights elsewhere, or gives its layers what depends on other parameters.
    """
    if layout.state:
        raise LayoutError(
            f"model '{layout.model.name}' changes {', '.join(layout.state)} in its forward pass, "
            f"and strategy '{layout.strategy.name}' hands on activations only: use pipe=1"
        )
    return _Loss(layout, traced).parts()


class _Loss:
    """A loss as one flat jaxpr, and where its stack of layers stands in it."""

    def __init__(self, layout: Layout, traced: TracedLoss):
        self.name, self.traced = layout.model.name, traced
        run = filled_loss(layout, traced, lambda: _Inlined(layout.attention.unmapped))

        def scored(*args):
            values = dict(zip(traced.arguments, args, strict=True))
            fields = {p.removeprefix(FIELD): v for p, v in values.items() if p.startswith(FIELD)}
            key = values.pop(KEY, None)
            loss, metrics, _ = run(values, {}, fields, key)
            return loss, metrics

        closed, shapes = jax.make_jaxpr(scored, return_shape=True)(*traced.arguments.values())
        self.consts, self.tree = tuple(closed.consts), jax.tree.structure(shapes)
        self.jaxpr = with_constants_first(closed).jaxpr
        variables = self.jaxpr.invars[len(self.consts) :]
        self.paths = dict(zip(variables, traced.arguments, strict=True))
        self.stack = self._the_stack()

    def _the_stack(self) -> Any:
        """The one equation that is a stack of layers."""
        found = [eqn for eqn in self.jaxpr.eqns if rule_of(eqn).kind == "layers"]
        if len(found) != 1:
            times = "never" if not found else f"{len(found)} times"
            raise LayoutError(
                f"model '{self.name}': its loss calls `through` {times}, and a pipeline splits one "
                "stack of layers into stages: call it once, or use a strategy without stages"
            )
        return found[0]

    def parts(self) -> Parts:
        """The loss as three functions."""
        p = self.stack.params
        end = p["consts"] + p["stacked"]
        fixed, stacks, carry = (
            self.stack.invars[: p["consts"]],
            self.stack.invars[p["consts"] : end],
            self.stack.invars[end:],
        )
        origins = [None if isinstance(a, Literal) else self._parameter(a) for a in stacks]
        layer_paths = tuple(dict.fromkeys(path for path in origins if path))
        beside = [a for a, path in zip(stacks, origins, strict=True) if path is None]
        before, asides = self.part(carry), self.part([*beside, *fixed])
        after = self.part(self.jaxpr.outvars, self.stack.outvars)
        self._check(layer_paths, before, asides, after)
        function = jaxpr_as_fun(p["body"])

        def layer(weights, aside, y):
            own, shared = iter(aside[: len(beside)]), aside[len(beside) :]
            given = [weights[path] if path else next(own) for path in origins]
            return list(function(*shared, *given, *y))

        def scored(rest, y, batch, key):
            return jax.tree.unflatten(self.tree, after.run(self._values(rest, batch, key), y))

        return Parts(
            before=lambda rest, batch, key: before.run(self._values(rest, batch, key)),
            aside=lambda rest, batch, key: asides.run(self._values(rest, batch, key)),
            stacked_asides=len(beside),
            layer=layer,
            after=scored,
            layer_paths=layer_paths,
            before_paths=tuple(p for p in before.paths if p in self.traced.weights),
            after_paths=tuple(p for p in after.paths if p in self.traced.weights),
            names=list(p["names"]),
            remat=p["remat"],
            activation=[_abstract(a) for a in carry],
            asides=tuple(_abstract(a) for a in (*beside, *fixed)),
        )

    def part(self, outs: Sequence[Any], given: Sequence[Any] = ()) -> _Part:
        """The equations that some results need, given the values of some variables."""
        needed = {a for a in outs if not isinstance(a, Literal)} - set(given)
        kept = []
        for eqn in reversed(self.jaxpr.eqns):
            if any(v in needed for v in eqn.outvars) and eqn is not self.stack:
                kept.append(eqn)
                needed.update(a for a in eqn.invars if not isinstance(a, Literal))
        needed -= set(given)
        count = len(self.consts)
        consts = [v for v in self.jaxpr.invars[:count] if v in needed]
        values = dict(zip(self.jaxpr.invars[:count], self.consts, strict=True))
        arguments = [v for v in self.jaxpr.invars[count:] if v in needed]
        jaxpr = jaxpr_of([*consts, *arguments, *given], outs, kept[::-1], self.jaxpr)
        return _Part(
            jaxpr_as_fun(ClosedJaxpr(jaxpr, ())),
            tuple(values[v] for v in consts),
            tuple(self.paths[v] for v in arguments),
        )

    def _parameter(self, var: Any) -> str | None:
        """The path of a parameter that a variable is, or None."""
        path = self.paths.get(var)
        return path if path in self.traced.weights else None

    def _values(self, rest, batch, key) -> dict[str, Any]:
        """Parameters outside the layers, batch fields and the key, by the traced loss's paths."""
        fields = {FIELD + name: value for name, value in batch.items()}
        return {**rest, **fields, **({} if key is None else {KEY: key})}

    def _check(self, layer_paths, before: _Part, asides: _Part, after: _Part) -> None:
        """Refuse a loss whose parts share parameters."""
        if set(asides.paths) & set(self.traced.weights):
            raise LayoutError(
                f"model '{self.name}': what its layers are given beside their own weights depends "
                "on other parameters, and stages send one activation only: pass it through the "
                "activation, or use a strategy without stages"
            )
        if (set(before.paths) | set(after.paths)) & set(layer_paths):
            raise LayoutError(
                f"model '{self.name}': its loss reads the weights of its layers outside of them "
                "too, and each stage has its own layers only: use a strategy without stages"
            )


@dataclass(frozen=True)
class _Part:
    """Some equations of a loss.

    Attributes:
        function: of constants, arguments and what is given, to results; all flat.
        consts: values of the constants.
        paths: of the arguments that it takes.
    """

    function: Callable[..., Any]
    consts: tuple[Any, ...]
    paths: tuple[str, ...]

    def run(self, values: Mapping[str, Any], given: Sequence[Any] = ()) -> list:
        """The results, given the arguments by path."""
        return list(self.function(*self.consts, *(values[p] for p in self.paths), *given))


def _abstract(atom: Any) -> jax.ShapeDtypeStruct:
    """An atom's shape and dtype."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)
