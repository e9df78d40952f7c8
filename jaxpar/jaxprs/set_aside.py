"""A loss without what its author said of devices, which a layout decides.

A sharding constraint names the devices of its author's mesh, and JAX orders callbacks on one device
only. Where a layout says how arrays are sharded, the first is taken out and the second let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from jaxpar.core.source_lines import line_of
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.interpreter import Interpreter, bound
from jaxpar.jaxprs.rules import rule_of

_CONSTRAINTS = ("sharding_constraint", "reshard", "device_put", "inspect_sharding")


def said_of_devices(closed: ClosedJaxpr) -> tuple[list[str], list[str]]:
    """The lines of a loss's own sharding constraints, and those of its ordered callbacks.

    >>> import jax.numpy as jnp
    >>> said_of_devices(jax.make_jaxpr(jnp.sin)(1.0))
    ([], [])
    """
    constraints, ordered = [], []
    for eqn, _ in equations(closed):
        if _is_constraint(eqn):
            constraints.append(line_of(eqn.source_info) or eqn.primitive.name)
        elif _is_ordered(eqn):
            ordered.append(line_of(eqn.source_info) or eqn.primitive.name)
    return list(dict.fromkeys(constraints)), list(dict.fromkeys(ordered))


def evaluate_aside(closed: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """A jaxpr's results, without its sharding constraints, its callbacks in any order."""
    return _SetAside().run(closed.jaxpr, closed.consts, args)


class _SetAside(Interpreter):
    """Evaluates without constraints and order."""

    def leaf(self, eqn, operands, here):
        """An operation's results, wherever they are."""
        if _is_ordered(eqn):
            if eqn.primitive.name == "debug_callback":
                jax.debug.callback(eqn.params["callback"], *operands)
                return []
            return bound(eqn, operands, {**eqn.params, "ordered": False})
        if not _is_constraint(eqn):
            return super().leaf(eqn, operands, here)
        if eqn.primitive.name in _CONSTRAINTS:
            return operands[: len(eqn.outvars)]
        return bound(eqn, operands, {**eqn.params, rule_of(eqn).sharding: None})


def _is_constraint(eqn: Any) -> bool:
    """Whether an equation says where its result is, by itself or by a parameter."""
    parameter = rule_of(eqn).sharding
    told = parameter is not None and eqn.params.get(parameter) is not None
    if eqn.primitive.name == "device_put":
        return any(device is not None for device in eqn.params["devices"])
    return told or eqn.primitive.name in _CONSTRAINTS


def _is_ordered(eqn: Any) -> bool:
    """Whether an equation is a callback that keeps its place among others."""
    return any("Ordered" in type(effect).__name__ for effect in eqn.effects) and (
        eqn.primitive.name in ("debug_callback", "debug_print", "io_callback")
    )
