"""Every array's sharding is part of its type, and JAX checks each operation.

Loss and gradient are traced together at global shapes and evaluated on a mesh of explicit axes
(JAX's sharding in types). How each array is sharded follows from the classes of its dims. An
operation that JAX has no typed rule for becomes an island: it is computed with the axes left to
XLA, and handed back with the sharding that its dims ask for; the step says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal, jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar.core.errors import LayoutError
from jaxpar.core.jax_compat import sharding_errors
from jaxpar.core.mesh import axes_of, entry_of
from jaxpar.inference.record import KEY
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.interpreter import Interpreter, as_it_is, bound
from jaxpar.jaxprs.record import FIELD, Scope, Trace
from jaxpar.jaxprs.rules import rule_of
from jaxpar.jaxprs.spell import names_of, spell
from jaxpar.jaxprs.unify import relate
from jaxpar.layout.record import Layout
from jaxpar.layout.stages import runs_in_stages
from jaxpar.step.filled import Filled, differentiated, filled_loss
from jaxpar.step.mapped import is_mapped, on_shards, specs_of
from jaxpar.step.modes.record import Asked, Differentiated, Island


def mode(asked: Asked) -> Differentiated:
    """The loss differentiated with shardings in types.

    Raises:
        LayoutError: the layout maps devices by itself (stages, exchanges, replicas of local SGD),
            or shards the residual otherwise between the parts of a block.
    """
    _check_typable(asked.layout)
    layout = asked.microbatch
    islands: list[Island] = []

    def gradients(lands, parameters, model_state, batch, key):
        loss = filled_loss(layout, asked.loss, lambda: Filled(layout.attention.unmapped))
        differentiate = differentiated(loss, asked.factor)
        groups = (parameters, model_state, dict(batch), {KEY: key})
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), groups)
        closed, shapes = jax.make_jaxpr(
            lambda p, s, b, k: differentiate(p, s, b, k[KEY]), return_shape=True
        )(*abstract)
        trace = relate(closed, _by_path(abstract), list(parameters))
        typist = _Typist(layout, trace, names_of(trace, _dims(layout)), islands)
        landing = (
            {path: getattr(a, lands) for path, a in layout.parameters.items()},
            {path: a.stored for path, a in layout.state.items()},
            jax.tree.map(lambda _: PartitionSpec(), shapes[2]),
        )

        def typed(*groups):
            results = typist.run(closed.jaxpr, closed.consts, jax.tree.leaves(groups), trace.scope)
            tree = jax.tree.unflatten(jax.tree.structure(shapes), results)
            return jax.tree.map(_typed_as, tree, landing)

        with jax.sharding.use_abstract_mesh(layout.mesh.abstract):
            explicit: Any = jax.sharding.explicit_axes(
                typed, axes=layout.mesh.axes, in_sharding=_specs(layout)
            )
            return explicit(*groups)

    return Differentiated(gradients, islands=islands)


def _check_typable(layout: Layout) -> None:
    """Refuse a layout that maps devices by itself, or shards a dim now so and now so."""
    strategy = layout.strategy
    mapped = {
        "exchanges shards of the sequence in attention": layout.exchange is not None,
        "runs layers in stages": runs_in_stages(strategy, layout.mesh),
        "trains replicas that average": strategy.averaging is not None,
    }
    for what, is_so in mapped.items():
        if is_so:
            raise LayoutError(
                f"strategy '{strategy.name}' {what}, which is a shard_map of its own, and explicit "
                "mode types whole arrays: use --mode auto or --mode manual"
            )
    if any(layout.mesh.size(a) > 1 for entry in strategy.between.values() for a in axes_of(entry)):
        raise LayoutError(
            f"strategy '{strategy.name}' shards the residual otherwise between the parts of a "
            "block than inside them, and explicit mode types a dim alike everywhere: use --mode "
            "auto or --mode manual"
        )


def _by_path(groups) -> dict[str, Any]:
    """Abstract arguments by path, in the order in which JAX flattens them."""
    return {
        label + path: x
        for label, group in zip(("", "", FIELD, ""), groups, strict=True)
        for path, x in sorted(group.items())
    }


def _dims(layout: Layout) -> dict[str, tuple[str, ...]]:
    """A name for each dim of every argument of the loss."""
    arrays = (*layout.parameters.items(), *layout.state.items())
    fields = layout.model.batch.items()
    return {path: a.dims for path, a in arrays} | {FIELD + n: f.dims for n, f in fields}


def _specs(layout: Layout) -> tuple[dict[str, PartitionSpec], ...]:
    """How the arguments of the gradient are sharded, in its groups."""
    return (
        {path: a.stored for path, a in layout.parameters.items()},
        {path: a.stored for path, a in layout.state.items()},
        dict(layout.batch),
        {KEY: PartitionSpec()},
    )


class _Typist(Interpreter):
    """Evaluates a jaxpr so that every array is sharded as the classes of its dims say.

    Beside each jaxpr is the `Scope` of its variables.
    """

    def __init__(
        self, layout: Layout, trace: Trace, names: Mapping[int, str], islands: list[Island]
    ):
        super().__init__()
        self.layout, self.trace, self.names, self.islands = layout, trace, names, islands

    def spec(self, scope: Scope, var: Any) -> PartitionSpec:
        """How an array is sharded; a dim that does not divide is replicated."""
        spec = self.layout.place_of(spell(self.trace.classes, self.names, scope, var))
        entries = []
        for dim, size, entry in zip(scope.dims[var], var.aval.shape, spec, strict=True):
            # A shard has to be a run of the outermost factor.
            nodes = self.trace.classes.resolve(dim)
            unit = self.trace.classes.size(nodes[0]) if nodes else size
            ways = prod(self.layout.mesh.size(axis) for axis in axes_of(entry))
            entries.append(entry if unit % ways == 0 and size % ways == 0 else None)
        return PartitionSpec(*entries)

    def used(self, atom, value, here):
        """An operand, sharded as its use needs it."""
        if isinstance(atom, Literal) or not hasattr(value, "dtype") or not jnp.ndim(value):
            return value
        spec = self.spec(here.beside, atom)
        if jax.typeof(value).sharding.spec == spec:
            return value
        if atom not in here.memo:
            here.memo[atom] = _typed_as(value, spec)
        return here.memo[atom]

    def all_used(self, eqn, operands, here):
        """The operands of an equation, sharded as it needs them."""
        pairs = zip(eqn.invars, operands, strict=True)
        return [self.used(atom, x, here) for atom, x in pairs]

    def equation(self, eqn, operands, here):
        """An equation's results, typed as the classes of their dims are sharded."""
        results = super().equation(eqn, operands, here)
        return [
            _typed_as(x, self.spec(here.beside, v)) if v.aval.shape else x
            for v, x in zip(eqn.outvars, results, strict=True)
        ]

    def custom(self, eqn, operands, here):
        """The results of a custom function's body."""
        # It is differentiated already: what is left is what it computes.
        return self.call(eqn, self.all_used(eqn, operands, here), here)

    def remat(self, eqn, operands, here):
        """The results of a rematerialised body."""
        # As above; XLA is kept from merging it with the first time that the same was computed.
        if eqn.params["prevent_cse"]:
            operands = lax.optimization_barrier(list(operands))
        return self.call(eqn, operands, here)

    def carried(self, values, variables, beside):
        """A loop's carry, typed."""
        pairs = zip(variables, values, strict=True)
        return [_typed_as(x, self.spec(beside, v)) for v, x in pairs]

    def scanned(self, stacks):
        """What a loop takes apart, not sharded along the dim that it turns over."""
        specs = [jax.typeof(x).sharding.spec for x in stacks]
        return [
            _typed_as(x, PartitionSpec(None, *spec[1:]))
            for x, spec in zip(stacks, specs, strict=True)
        ]

    def stacked(self, values, variables, beside):
        """A loop's stacked results, typed."""
        return [
            x if isinstance(v, Literal) else _typed_as(x, self.spec(beside, v))
            for v, x in zip(variables, values, strict=True)
        ]

    def cond(self, eqn, operands, here):
        """A conditional's results, every branch's typed alike."""
        index, *rest = operands
        specs = [self.spec(here.beside, v) for v in eqn.outvars]

        def branch(number, held):
            def run(*args):
                results = self.run_held(held, args, here.within(number))
                return [_typed_as(x, spec) for x, spec in zip(results, specs, strict=True)]

            return run

        branches = [branch(k, held) for k, held in enumerate(eqn.params["branches"])]
        return lax.switch(index, branches, *rest)

    def while_loop(self, eqn, operands, here):
        """A while loop's results; it becomes an island."""
        why = "how often it turns is not known, so what it carries is not typed"
        return self.island(eqn, self.all_used(eqn, operands, here), here, why)

    def leaf(self, eqn, operands, here):
        """An operation's results; an island where JAX has no sharding rule for it."""
        operands = self.all_used(eqn, operands, here)
        if is_mapped(eqn):
            specs = [self.spec(here.beside, atom) for atom in eqn.invars]
            inside = specs_of(self.layout, eqn, specs)
            typed = [_typed_as(x, spec) for x, spec in zip(operands, inside, strict=False)]
            return on_shards(self.layout, eqn, typed, specs)
        if eqn.primitive.name == "fft":
            return [self.transformed(eqn, operands[0])]
        try:
            if parameter := rule_of(eqn).sharding:
                mesh = jax.sharding.get_abstract_mesh()
                spec = self.spec(here.beside, eqn.outvars[0])
                params = {**eqn.params, parameter: NamedSharding(mesh, spec)}
                return bound(eqn, operands, params)
            return as_it_is(eqn, operands)
        except sharding_errors() as refusal:
            first = (str(refusal).strip() or type(refusal).__name__).splitlines()[0]
            return self.island(eqn, operands, here, first[:200])

    def transformed(self, eqn, operand):
        """A Fourier transform's result, of an operand gathered along the dims that it is along.

        Of one that is sharded along them XLA's partitioner ends the process (jaxlib 0.10.2).
        """
        count = len(eqn.params["fft_lengths"])
        spec = jax.typeof(operand).sharding.spec
        spec = PartitionSpec(*spec[: jnp.ndim(operand) - count], *[None] * count)
        made = jax.sharding.auto_axes(lambda x: as_it_is(eqn, [x])[0], out_sharding=spec)
        return made(_typed_as(operand, spec))

    def island(self, eqn, operands, here, why: str) -> list:
        """The results of an equation that is left to XLA, and a note of it."""
        self.islands.append(Island(eqn.primitive.name, self.source, why))
        specs = tuple(self.spec(here.beside, v) for v in eqn.outvars)
        if _transforms(eqn):
            specs = tuple(PartitionSpec(*[None] * len(spec)) for spec in specs)
            operands = [_typed_as(x, PartitionSpec(*[None] * jnp.ndim(x))) for x in operands]

        def alone(*operands):
            return tuple(as_it_is(eqn, operands))

        left_to_xla: Any = jax.sharding.auto_axes(alone, out_sharding=specs)
        return list(left_to_xla(*operands))


def _transforms(eqn: Any) -> bool:
    """Whether an equation holds a Fourier transform, which XLA is not to partition."""
    held = jaxprs_in_params(eqn.params)
    return any(inner.primitive.name == "fft" for jaxpr in held for inner, _ in equations(jaxpr))


def _typed_as(x: Any, spec: PartitionSpec) -> Any:
    """`x`, its sharding in its type."""
    if not hasattr(x, "dtype"):
        return x
    spec = PartitionSpec(*(entry_of(axes_of(e)) for e in spec))
    if jax.typeof(x).sharding.spec == spec or not jnp.ndim(x):
        return x
    return jax.sharding.reshard(x, spec)
