"""Attention as people write it, made the hook `attend`, so that it is fused as ours is.

In `jax.nn.dot_product_attention`, in Flax's layers and in what is written by hand; see `found` for
what is known as attention. All else stays as it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import AbstractMesh

from jaxpar.attention.constants import Constants
from jaxpar.attention.found import Attention, attentions, is_product
from jaxpar.core import hooks
from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.interpreter import Here, Interpreter, held_by
from jaxpar.jaxprs.rules import rule_of


def fused_where_written(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same function, the attentions in it that can be fused made the hook `attend`.

    Itself where there is none.
    """
    if not any(is_product(eqn) for eqn, _ in equations(closed)):
        return closed
    rewriter = _Rewriter()
    # Calls are inlined first: JAX's own functions are full of them.
    made = _traced(rewriter, _traced(Interpreter(), closed))
    return made if rewriter.found else closed


def _traced(interpreter: Interpreter, closed: ClosedJaxpr) -> ClosedJaxpr:
    """A jaxpr as an interpreter evaluates it."""
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        return jax.make_jaxpr(lambda *x: interpreter.run(closed.jaxpr, closed.consts, x))(*shapes)


@dataclass(frozen=True)
class _Beside:
    """What is known of one jaxpr: its constants, and the attentions in it."""

    constants: Constants
    attentions: list[Attention]


class _Rewriter(Interpreter):
    """Evaluates a jaxpr, its attentions by the hook.

    Attributes:
        found: how many there were.
    """

    def __init__(self):
        super().__init__()
        self.found = 0

    def run(self, jaxpr, consts, args, beside=None):
        """The results of an open jaxpr; `beside` has what its arguments are in the one around."""
        constants = Constants(jaxpr, consts, beside or {})
        return super().run(jaxpr, consts, args, _Beside(constants, attentions(constants)))

    def inner(self, beside: Any, index: int) -> Any:
        """What the arguments of each jaxpr that an equation holds are in this one."""
        eqn = beside.constants.jaxpr.eqns[index]
        kind, atoms = rule_of(eqn).kind, eqn.invars
        if kind == "remat":
            variables = open_jaxpr(held_by(eqn))[0].invars
        elif kind == "scan":
            atoms = atoms[: scan_parts(eqn.params)[0]]
            variables = open_jaxpr(eqn.params["jaxpr"])[0].invars[: len(atoms)]
        else:
            return ()
        return ({v: (beside.constants, a) for v, a in zip(variables, atoms, strict=True)},)

    def equation(self, eqn, operands, here: Here):
        """An equation's results; those of an attention at its last product."""
        for one in here.beside.attentions:
            if eqn is one.first:
                here.memo[id(one)] = operands
            if any(eqn is step for step in one.steps):
                return [None] * len(eqn.outvars)
            if eqn is one.last:
                self.found += 1
                return [_attended(one, _operands(one, here.memo[id(one)], operands))]
        return super().equation(eqn, operands, here)


def _operands(one: Attention, first, last) -> list[jax.Array]:
    """Queries, keys and values, among what the two products were given."""
    given = zip((*one.first.invars, *one.last.invars), (*first, *last), strict=True)
    values = {atom: x for atom, x in given if not isinstance(atom, Literal)}
    return [values[var] for var, _ in (one.query, one.key, one.value)]


def _attended(one: Attention, operands: list[jax.Array]) -> jax.Array:
    """What the hook makes of an attention's operands, its dims as the last product had them."""
    dims = [dims for _, dims in (one.query, one.key, one.value)]
    sizes: dict[str, int] = {}
    for x, names in zip(operands, dims, strict=True):
        sizes |= zip(names, x.shape, strict=True)
    rows, heads = ([d for d in ("row", "head")[k : k + 1] if d in dims[0]] for k in (0, 1))
    groups = [d for d in dims[0] if d.startswith("group")]
    parts = {
        "q": (rows, ["query"], heads, groups, ["summed"]),
        "k": (rows, ["key"], heads, ["summed"]),
        "v": (rows, ["key"], heads, ["width"]),
        "y": (rows, ["query"], heads, groups, ["width"]),
    }

    def merged(x, names, part):
        order = [d for some in parts[part] for d in some]
        x = jnp.transpose(x, [names.index(d) for d in order])
        return x.reshape([prod(sizes[d] for d in some) for some in parts[part]])

    q, k, v = (merged(x, names, part) for x, names, part in zip(operands, dims, "qkv", strict=True))
    y = hooks.attend(q, k, v, causal=one.causal, scale=one.scale)
    made = [d for some in parts["y"] for d in some]
    y = y.reshape([sizes[d] for d in made])
    y = jnp.transpose(y, [made.index(d) for d in one.result])
    return y.astype(one.last.outvars[0].aval.dtype)
