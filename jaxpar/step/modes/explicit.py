"""The explicit mode: every array's sharding is part of its type, and JAX checks each operation.

Loss and gradient are traced together at global shapes and evaluated on a mesh of explicit axes
(JAX's sharding in types). Where each array lies follows from the classes of its dims. An operation
that JAX has no typed rule for becomes an island: it is computed with the axes left to XLA, and
handed back with the sharding that its dims ask for; the step says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.mesh import axes_of, entry_of
from jaxpar.core.roles import ONE, UNNAMED
from jaxpar.inference.annotate import is_grouped, spell
from jaxpar.jaxprs.interpreter import Evaluator, as_it_is
from jaxpar.jaxprs.record import FIELD
from jaxpar.jaxprs.scan import scan_parts
from jaxpar.jaxprs.unify import relate
from jaxpar.layout.record import Layout

_SAYS_WHERE = {
    "dot_general": "out_sharding",
    "broadcast_in_dim": "sharding",
    "iota": "sharding",
    "reshape": "sharding",
}
"""Primitives that can be told where their result lies, and by which parameter."""

_INLINE = frozenset("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr".split())


@dataclass(frozen=True)
class Island:
    """Operations of one kind at one line that were left to XLA, and why JAX would not type them."""

    primitive: str
    source: str
    why: str


_islands: ContextVar[list[Island] | None] = ContextVar("islands", default=None)


@contextmanager
def mapping() -> Iterator[list[Island]]:
    """While a step is traced: collects the islands that it needs."""
    found: list[Island] = []
    token = _islands.set(found)
    try:
        yield found
    finally:
        _islands.reset(token)


def differentiate_explicitly(layout: Layout, loss_of: Callable, factor: float = 1.0) -> Callable:
    """The gradient function of `loss_of` with shardings in types.

    Args:
        layout: where parameters, state and batch lie.
        loss_of: (parameters, model_state, batch, key) -> (Mean, metrics, model_state), written for
            whole arrays and saying nothing of devices.
        factor: what the loss's total is multiplied by before it is differentiated.

    Returns:
        (lands, parameters, model_state, batch, key) -> (gradients of the total x factor,
        model_state, {name: Mean}).
    """

    def both(parameters, model_state, batch, key):
        def total(parameters):
            loss, metrics, new = loss_of(parameters, model_state, batch, key)
            return loss.total * factor, ({"loss": loss, **metrics}, new)

        totals, (metrics, new) = jax.grad(total, has_aux=True)(parameters)
        return totals, new, metrics

    def differentiate(lands, parameters, model_state, batch, key):
        groups = (parameters, model_state, dict(batch), {"key": key})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), groups)
        closed, shapes = jax.make_jaxpr(
            lambda p, s, b, k: both(p, s, b, k["key"]), return_shape=True
        )(*abstract)
        paths = {
            label + path: x
            for label, group in zip(("", "", FIELD, "random/"), abstract, strict=True)
            for path, x in sorted(group.items())
        }
        trace = relate(closed, paths, list(parameters))
        typist = _Typist(layout, trace, _names(layout, trace))
        specs = (
            {path: a.stored for path, a in layout.parameters.items()},
            {path: a.stored for path, a in layout.state.items()},
            dict(layout.batch),
            {"key": PartitionSpec()},
        )

        def typed(*groups):
            flat = jax.tree.leaves(groups)
            results = typist.run(closed.jaxpr, closed.consts, trace.scope, flat)
            totals, new, metrics = jax.tree.unflatten(jax.tree.structure(shapes), results)
            landing = {p: getattr(a, lands) for p, a in layout.parameters.items()}
            stored = {p: a.stored for p, a in layout.state.items()}
            whole = jax.tree.map(lambda _: PartitionSpec(), metrics)
            return jax.tree.map(_lying, (totals, new, metrics), (landing, stored, whole))

        with jax.sharding.use_abstract_mesh(layout.mesh.abstract):
            return jax.sharding.explicit_axes(typed, axes=layout.mesh.axes, in_sharding=specs)(
                *groups
            )

    return differentiate


def _names(layout: Layout, trace) -> Mapping[int, str]:
    """Class -> the name that the layout's arrays give it."""
    said = {
        **{path: a.dims for path, a in (*layout.parameters.items(), *layout.state.items())},
        **{f"batch/{name}": f.dims for name, f in layout.model.batch.items()},
    }
    names: dict[int, str] = {}
    for path, dims in said.items():
        for dim, name in zip(trace.arguments[path], dims, strict=True):
            nodes, parts = trace.classes.resolve(dim), name.split("*")
            if len(parts) != len(nodes):
                # One name for a dim that the trace found to be a product: its outermost factor.
                nodes, parts = nodes[:1], parts[:1]
            for node, part in zip(nodes, parts, strict=False):
                if part not in (UNNAMED, ONE):
                    names.setdefault(node, part)
    return names


class _Typist(Evaluator):
    """Evaluates a jaxpr so that every array lies where the classes of its dims say."""

    def __init__(self, layout: Layout, trace: Any, names: Mapping[int, str]):
        super().__init__()
        self.layout, self.trace, self.names = layout, trace, names

    def spec(self, scope, var) -> PartitionSpec:
        """Where an array lies; a dim that does not divide is whole."""
        spec = self.layout.place_of(spell(self.trace.classes, self.names, scope, var))
        sizes = self.layout.mesh
        entries = []
        for dim, size, entry in zip(scope.dims[var], var.aval.shape, spec, strict=True):
            # A piece has to be a piece of the outermost factor.
            nodes = self.trace.classes.resolve(dim)
            unit = self.trace.classes.size(nodes[0]) if nodes else size
            ways = prod(sizes.size(axis) for axis in axes_of(entry))
            entries.append(entry if unit % ways == 0 and size % ways == 0 else None)
        return PartitionSpec(*entries)

    def used(self, atom, value, scope, memo):
        """An operand where its use needs it."""
        if isinstance(atom, Literal) or not hasattr(value, "dtype") or not jnp.ndim(value):
            return value
        spec = self.spec(scope, atom)
        if jax.typeof(value).sharding.spec == spec:
            return value
        if atom not in memo:
            memo[atom] = _lying(value, spec)
        return memo[atom]

    def equation(self, eqn, operands, inner, scope, memo):
        name = eqn.primitive.name
        if name in _INLINE and inner:
            closed = eqn.params.get("call_jaxpr", eqn.params.get("fun_jaxpr"))
            operands = self.all_used(eqn, operands, scope, memo)
            return self.run(closed.jaxpr, closed.consts, inner[0], operands)
        results = super().equation(eqn, operands, inner, scope, memo)
        return [
            _lying(x, self.spec(scope, v)) if v.aval.shape else x
            for v, x in zip(eqn.outvars, results, strict=True)
        ]

    def all_used(self, eqn, operands, scope, memo):
        pairs = zip(eqn.invars, operands, strict=True)
        return [self.used(atom, x, scope, memo) for atom, x in pairs]

    def remat(self, p, operands, inner):
        # It is differentiated already: what is left is to keep XLA from merging it with the first
        # time that the same was computed.
        if p["prevent_cse"]:
            operands = lax.optimization_barrier(list(operands))
        jaxpr = p["jaxpr"]
        consts = getattr(jaxpr, "consts", ())
        return self.run(getattr(jaxpr, "jaxpr", jaxpr), consts, inner, operands)

    def scan(self, eqn, operands, inner, scope):
        """A carry is typed alike before and after; stored weights are used inside."""
        p = eqn.params
        consts, end = scan_parts(p)
        carries = end - consts
        closed = p["jaxpr"]
        held = slice(consts, consts + carries)

        def carried(values):
            pairs = zip(closed.jaxpr.invars[held], values, strict=True)
            return [_lying(x, self.spec(inner, v)) for v, x in pairs]

        def body(carry, slices):
            args = [*operands[:consts], *carry, *slices]
            results = self.run(closed.jaxpr, closed.consts, inner, args)
            made = zip(closed.jaxpr.outvars[carries:], results[carries:], strict=True)
            ys = [x if isinstance(v, Literal) else _lying(x, self.spec(inner, v)) for v, x in made]
            return carried(results[:carries]), ys

        last, stacked = lax.scan(
            body,
            carried(operands[held]),
            operands[consts + carries :],
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*last, *stacked]

    def cond(self, eqn, operands, inner, scope):
        index, *rest = operands
        specs = [self.spec(scope, v) for v in eqn.outvars]

        def branch(closed, scope):
            def run(*args):
                results = self.run(closed.jaxpr, closed.consts, scope, args)
                return [_lying(x, spec) for x, spec in zip(results, specs, strict=True)]

            return run

        return lax.switch(index, [*map(branch, eqn.params["branches"], inner)], *rest)

    def plain(self, eqn, operands, scope, memo):
        operands = self.all_used(eqn, operands, scope, memo)
        specs = [self.spec(scope, v) for v in eqn.outvars]
        name = eqn.primitive.name
        if is_grouped(eqn):
            # XLA has the gradient of its filter wrong where rows are split: each device does all.
            operands = [_lying(x, PartitionSpec(*[None] * jnp.ndim(x))) for x in operands]
        if name == "while":
            self.note(name, "how often it turns is not known, so what it carries is not typed")
            return self.island(eqn, operands, specs)
        try:
            if name in _SAYS_WHERE:
                mesh = jax.sharding.get_abstract_mesh()
                params = {**eqn.params, _SAYS_WHERE[name]: NamedSharding(mesh, specs[0])}
                return [eqn.primitive.bind(*operands, **params)]
            return as_it_is(eqn, operands)
        except Exception as refusal:  # whatever JAX will not type, XLA may still compute
            first = (str(refusal).strip() or type(refusal).__name__).splitlines()[0]
            self.note(name, first[:200])
            return self.island(eqn, operands, specs)

    def island(self, eqn, operands, specs):
        def alone(*operands):
            return tuple(as_it_is(eqn, operands))

        return list(jax.sharding.auto_axes(alone, out_sharding=tuple(specs))(*operands))

    def note(self, name, why):
        found = _islands.get()
        if found is not None:
            found.append(Island(name, self.source, why))


def _lying(x, spec):
    """`x`, typed to lie so."""
    if not hasattr(x, "dtype"):
        return x
    spec = PartitionSpec(*(entry_of(axes_of(e)) for e in spec))
    if jax.typeof(x).sharding.spec == spec or not jnp.ndim(x):
        return x
    return jax.sharding.reshard(x, spec)
