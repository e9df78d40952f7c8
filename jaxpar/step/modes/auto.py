"""XLA's partitioner places the collectives; constraints shard weights and named arrays.

Weights are constrained as they are stored and again as they are used, just before the use: in
backward the gradient so goes straight back to the stored sharding, an all-reduce and a slice that
XLA:GPU fuses into a reduce-scatter. Layers in a loop are gathered one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxpar.core import hooks
from jaxpar.core.annotations import ENTERING, USED
from jaxpar.core.hooks import ARRIVED
from jaxpar.core.jax_compat import scan_parts
from jaxpar.jaxprs.interpreter import computed_again, held_by
from jaxpar.jaxprs.policy import keep_all_but_cheap
from jaxpar.jaxprs.rules import is_cast, rule_of
from jaxpar.layout.record import Array, Layout
from jaxpar.layout.stages import runs_in_stages
from jaxpar.step.constraints import constrained, landing_as
from jaxpar.step.filled import Filled, Scored, differentiated, filled_loss, scored
from jaxpar.step.gathers import for_use, is_stack, kept_state, looped_over
from jaxpar.step.lookups import is_lookup, looked_up, rows_travel
from jaxpar.step.mapped import is_mapped, on_shards
from jaxpar.step.modes import pipeline
from jaxpar.step.modes.record import Asked, Differentiated
from jaxpar.step.narrowed import narrowed, read_again
from jaxpar.step.placement import Placement, placement
from jaxpar.step.rewritten import rewritten_loss
from jaxpar.step.summed_once import summed_by_us, summed_once


def mode(asked: Asked) -> Differentiated:
    """The loss differentiated, with sharding constraints for XLA's partitioner."""
    layout = asked.layout
    if runs_in_stages(layout.strategy, layout.mesh):
        return pipeline.mode(asked)

    if axes := summed_by_us(asked):
        return Differentiated(
            summed_once(asked, axes, _gradients), takes_all=True, is_partitioned=True
        )
    return Differentiated(_gradients(asked), is_partitioned=True)


def _gradients(asked: Asked) -> Callable[..., Any]:
    """The gradients of one microbatch, as `Differentiated` has them."""
    layout = asked.layout

    def gradients(lands, parameters, model_state, batch, key):
        if layout.mesh.devices == 1:
            loss = filled_loss(asked.microbatch, asked.loss, lambda: Filled(layout.attention))
        else:
            loss = partial(_constrained_loss, asked.microbatch, asked.loss, asked.placement)
        totals, new, means = differentiated(loss, asked.factor)(parameters, model_state, batch, key)
        return landing_as(layout, lands, totals), new, means

    return gradients


def evaluation(layout: Layout) -> Callable[..., dict[str, Any]]:
    """(parameters, model_state, batch) -> {name: Mean}, without dropout or changing statistics."""

    def evaluate(parameters, model_state, batch):
        traced = rewritten_loss(layout.model, train=False)
        if layout.mesh.devices == 1:
            loss = filled_loss(layout, traced, lambda: Filled(layout.attention))
        else:
            loss = partial(_constrained_loss, layout, traced, placement(layout, traced))
        mean, metrics, _ = loss(parameters, model_state, batch, None)
        return {"loss": mean, **metrics}

    return evaluate


def _constrained_loss(layout, traced, where, parameters, model_state, batch, key) -> Scored:
    """The loss with weights gathered for use, and what it names constrained."""
    variables = dict(zip(traced.closed.jaxpr.invars, traced.arguments, strict=True))
    looped, dtypes = looped_over(traced.closed.jaxpr, variables), narrowed(traced)
    again, travel = read_again(traced), rows_travel(layout, traced)
    used = {
        path: parameters[path]
        if path in again or path in travel or (path in looped and is_stack(layout, array))
        else for_use(layout, array, parameters[path], dtypes)
        for path, array in layout.parameters.items()
    }
    constrainer = _Constrainer(layout, where, used, dtypes, again, travel)
    constrainer.kept = kept_state(layout, model_state)
    return scored(layout, traced, constrainer, used, model_state, batch, key)


class _Constrainer(Filled):
    """Evaluates with constraints; a weight is known by the value that stands for it."""

    def __init__(
        self,
        layout: Layout,
        where: Placement,
        weights: Mapping[str, jax.Array],
        dtypes: Mapping[str, np.dtype],
        again: frozenset[str],
        travel: Mapping[str, PartitionSpec],
    ):
        super().__init__(layout.attention)
        self.layout, self.where, self.dtypes = layout, where, dtypes
        self.again, self.travel = again, travel
        self.weights = {id(value): path for path, value in weights.items()}
        self.specs: dict[int, PartitionSpec] = {}
        self.held: list[Any] = []
        """What is known by its identity, so that the identity stays its own."""
        self.gathered: list[list[Array | None]] = []
        """Of each loop around, the weights among what it takes apart that are to be gathered."""
        self.kept: dict[int, Array] = {}
        """State that is still as it is stored, by the id of its value."""

    def named(self, x, names, says):
        """A named array, constrained to be sharded as its names ask."""
        sharded = self.where.of(names, tuple(x.shape))
        constrain = partial(constrained, self.layout)
        if says == USED:
            x = constrain(x, sharded.used)
        elif says == ENTERING:
            x = constrain(constrain(x, sharded.between), sharded.used)
            x = checkpoint_name(x, ARRIVED)
        else:
            # Without the first of the two XLA was seen to gather a table, or to move a product's
            # other operand, instead.
            x = constrain(constrain(x, sharded.used), sharded.between)
            # Or backward would keep what it was before, and sum that over devices whole.
            x = checkpoint_name(x, ARRIVED)
        self.held.append(x)
        self.specs[id(x)] = sharded.after(says)
        return x

    def equation(self, eqn, operands, here):
        """An equation's results; stored state is gathered for all but calls and what is done to
        each element, so that a running average of a weight is computed a shard at a time."""
        kind = rule_of(eqn).kind
        kept = next((self.kept[id(x)] for x in operands if id(x) in self.kept), None)
        if kept is None or kind == "call":
            return super().equation(eqn, operands, here)
        if kind in ("elementwise", "cast") and eqn.outvars[0].aval.shape == kept.shape:
            results = super().equation(eqn, operands, here)
            results = [constrained(self.layout, x, kept.stored) for x in results]
            self.held += results
            self.kept |= {id(x): kept for x in results}
            return results
        first = scan_parts(eqn.params)[1] if kind == "scan" else len(operands)
        operands = [
            x if k >= first and any(self.stacks([x])) else self.arrived(x, here.memo)
            for k, x in enumerate(operands)
        ]
        return super().equation(eqn, operands, here)

    def arrived(self, x, memo):
        """A value gathered for use, once in each jaxpr, if it is state as it is stored."""
        if id(x) not in self.kept:
            return x
        key = "arrived", id(x)
        if key not in memo:
            memo[key] = for_use(self.layout, self.kept[id(x)], x, {})
        return memo[key]

    def leaf(self, eqn, operands, here):
        """An operation's results; a cast weight is still known by its path."""
        if is_mapped(eqn):
            specs = [self.spec_of(x) for x in operands]
            return on_shards(self.layout, eqn, operands, specs)
        path = self.weights.get(id(operands[0]), "") if is_lookup(eqn) else ""
        if path in self.travel:
            return [looked_up(self.layout, path, self.travel[path], eqn, *operands)]
        whole = self.whole_for(eqn)
        results = list(map(whole, super().leaf(eqn, list(map(whole, operands)), here)))
        if is_cast(eqn) and id(operands[0]) in self.weights:
            self.held += results
            self.weights[id(results[0])] = self.weights[id(operands[0])]
        return results

    def whole_for(self, eqn) -> Callable[[jax.Array], jax.Array]:
        """What is to be done to an equation's operands and results before XLA partitions it."""
        if eqn.primitive.name != "fft":
            return lambda x: x
        # Of a transform along a sharded dim XLA's partitioner ends the process, unless each shard
        # divides by their number (jaxlib 0.10.2); so it is gathered before.
        count = len(eqn.params["fft_lengths"])
        rest = [PartitionSpec.UNCONSTRAINED] * (len(eqn.invars[0].aval.shape) - count)
        spec = PartitionSpec(*rest, *[None] * count)
        return lambda x: constrained(self.layout, x, spec)

    def spec_of(self, x: jax.Array) -> PartitionSpec:
        """How a named array or a weight is sharded; of what is neither, nothing is."""
        if id(x) in self.weights:
            return self.layout.parameters[self.weights[id(x)]].used
        return self.specs.get(id(x), PartitionSpec(*[None] * x.ndim))

    def stacks(self, values) -> list[Array | None]:
        """Of what a loop takes apart, the weights that are gathered a layer at a time."""
        paths = [self.weights.get(id(x)) for x in values]
        arrays = [
            self.kept.get(id(x)) or self.layout.parameters.get(path or "")
            for path, x in zip(paths, values, strict=True)
        ]
        return [
            a if a and a.stored != a.used and is_stack(self.layout, a) else None for a in arrays
        ]

    def remat(self, eqn, operands, here):
        """The results of what is computed again; weights that only it reads are gathered within,
        so that backward gathers them again and keeps none."""
        paths = [self.weights.get(id(x)) for x in operands]
        arrays = [self.layout.parameters[p] if p in self.again else None for p in paths]
        if not any(a and a.stored != a.used for a in arrays):
            return super().remat(eqn, operands, here)

        def body(*args):
            pairs = list(zip(arrays, args, strict=True))
            args = [x if a is None else for_use(self.layout, a, x, self.dtypes) for a, x in pairs]
            self.held += args
            self.weights |= {id(x): a.path for (a, _), x in zip(pairs, args, strict=True) if a}
            return self.run_held(held_by(eqn), args, here.within())

        return computed_again(eqn, body, operands)

    def scan(self, eqn, operands, here):
        """A loop's results, the weights that it is to gather known while it is walked."""
        self.gathered.append(self.stacks(operands[scan_parts(eqn.params)[1] :]))
        results = super().scan(eqn, operands, here)
        self.gathered.pop()
        return results

    def slices(self, slices, variables, beside):
        """One turn's slices, its weights gathered for use."""
        return self.one_layer(self.gathered[-1], slices)

    def loop_body(self, eqn, body, operands):
        """A loop's body; if it gathers weights, backward gathers them again, and keeps none."""
        if not any(self.gathered[-1]):
            return body
        return hooks.rematerialized(body, "none", otherwise=keep_all_but_cheap)

    def one_layer(self, arrays, slices) -> list:
        """One layer's weights, gathered for use, and whatever else a loop takes apart."""
        pairs = zip(arrays, slices, strict=True)
        return [
            x if a is None else for_use(self.layout, a, x, self.dtypes, drop=1) for a, x in pairs
        ]

    def layers(self, eqn, operands, here):
        """A stack's results, each layer's weights gathered for use within its own turn."""
        p, names = eqn.params, eqn.params["names"]
        end = p["consts"] + p["stacked"]
        fixed, stacks, carry = operands[: p["consts"]], operands[p["consts"] : end], operands[end:]
        arrays = self.stacks(stacks)

        def bounded(values):
            # Without it XLA was seen to shard activations rather than gather weights.
            pairs = zip(values, names, strict=True)
            return [
                constrained(self.layout, x, self.where.of(n, tuple(x.shape)).between)
                for x, n in pairs
            ]

        def body(carry, slices):
            slices = self.one_layer(arrays, slices)
            return bounded(self.run_held(p["body"], [*fixed, *slices, *carry], here.within()))

        gathers = any(a.stored != a.used for a in self.layout.parameters.values())
        body = hooks.rematerialized(
            body,
            p["remat"],
            otherwise=keep_all_but_cheap if gathers or p["unroll"] == 1 else None,
            looped=p["unroll"] == 1,
        )
        return hooks.over_layers(body, list(stacks), bounded(carry), unroll=p["unroll"])
