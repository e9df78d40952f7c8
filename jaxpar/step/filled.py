"""A traced loss with its hooks filled in: layers one after another, attention plain or exchanged.

What becomes of the arrays that the loss names is up to a mode's own interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.attention.fit import dealt
from jaxpar.attention.record import Exchange, Local, Whole
from jaxpar.core import hooks
from jaxpar.core.annotations import ATTEND, NAMED, ORDERED, bind_named
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.interpreter import Here, Interpreter
from jaxpar.jaxprs.untransposed import untransposed
from jaxpar.layout.record import Layout
from jaxpar.models.record import Mean


class Filled(Interpreter):
    """Evaluates a loss with its hooks filled in; what it names is left as it is."""

    through = staticmethod(hooks.in_order)

    def __init__(self, attention: Exchange | Local | Whole):
        """With attention exchanged between devices, or each device's own."""
        super().__init__()
        self.attention = attention

    def leaf(self, eqn, operands, here: Here):
        """An operation's results; hooks and annotations are replaced by what they stand for."""
        name = eqn.primitive.name
        if name == ATTEND:
            how = {name: eqn.params[name] for name in ("causal", "implementation", "scale")}
            return [self.attention(*operands, **how)]
        if name == ORDERED:
            return [self.ordered(operands[0], eqn.params["axis"])]
        if name == NAMED:
            return [self.named(operands[0], eqn.params["names"], eqn.params["says"])]
        return super().leaf(eqn, operands, here)

    def ordered(self, x: jax.Array, axis: int) -> jax.Array:
        """`x`, its dim `axis` in the order in which the exchange deals positions to devices."""
        if self.attention.positions is None:
            return x
        return jnp.take(x, self.attention.positions(x.shape[axis]), axis=axis)

    def named(self, x: jax.Array, names: tuple[str, ...], says: str) -> jax.Array:
        """An array that the loss names, as it is."""
        del names, says
        return x


class Annotated(Filled):
    """Evaluates with hooks filled in, the loss's names still in the trace."""

    def named(self, x, names, says):
        """An array that the loss names, named again."""
        return bind_named(x, names, says)


Scored = tuple[Mean, dict[str, Mean], dict[str, Any]]
"""The loss, the metrics and the new state by path."""


def scored(
    layout: Layout, traced: TracedLoss, interpreter: Filled, parameters, state, batch, key
) -> Scored:
    """A traced loss by an interpreter, its batch dealt out as the exchange wants it."""
    batch = dealt(interpreter.attention, layout.model, batch, layout.batch)
    args = traced.flat(parameters, state, batch, key)
    return traced.unflat(interpreter.run(traced.closed.jaxpr, traced.closed.consts, args))


def filled_loss(
    layout: Layout, traced: TracedLoss, make: Callable[[], Filled]
) -> Callable[..., Scored]:
    """(parameters, state, batch, key) -> `Scored`, by an interpreter made anew for each call."""

    def loss(parameters, state, batch, key) -> Scored:
        return scored(layout, traced, make(), parameters, state, batch, key)

    return loss


def differentiated(loss: Callable[..., Scored], factor: float) -> Callable:
    """(parameters, state, batch, key) -> (gradients of total x factor, new state, {name: Mean})."""

    def gradients(parameters: Mapping[str, Any], state, batch, key):
        def total(parameters):
            mean, metrics, new = loss(parameters, state, batch, key)
            return mean.total * factor, ({"loss": mean, **metrics}, new)

        totals, (means, new) = untransposed(jax.grad(total, has_aux=True))(parameters)
        return totals, new, means

    return gradients
