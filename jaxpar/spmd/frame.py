"""One body being walked: moves values between placements, each movement made once and shared.

Sharing matters for the backward pass. Three products that read the same activation share one cast
to "varying", so that its transpose is one all-reduce and not three. Memory of these movements ends
with the body (of a loop, of a remat), which keeps weights gathered inside the innermost body.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from jaxpar.core.annotations import LEAVING, NAMED
from jaxpar.core.hooks import ARRIVED
from jaxpar.core.scopes import weight_scope
from jaxpar.core.varying import as_varying, varying
from jaxpar.jaxprs.equations import needed
from jaxpar.jaxprs.interpreter import Interpreter
from jaxpar.jaxprs.rules import rule_of
from jaxpar.spmd.value import (
    Deferred,
    Placement,
    Value,
    axes_of,
    constant,
    literal,
    local_shape,
    placement_of,
)


class Frame(Interpreter):
    """A body in which values move between placements; `memo` may bring movements made outside."""

    def __init__(self, run, memo=None):
        """Begin a body; `run` is the walk's shared state."""
        super().__init__()
        self.state, self.trail = run, run.trail
        self.target: Placement | None = None
        """Where the result of the equation that is being run goes at once, or None."""
        self.memo = dict(memo or {})
        self.gathers = False
        """Whether a stored weight was gathered directly in this body."""
        self.pieces: dict[int, Value] = {}
        """The stored weight that a gathered one was made of, by the latter's id."""
        self.unsummed: dict[Any, list] = {}
        """Of a result's variable the axes over which devices may keep parts, and over which they
        do; see `jaxpar.spmd.custom`."""

    def _once(self, value, movement: str, argument, make):
        """`make()`, or what it returned when this value was moved in this way before."""
        key = (id(value), movement, argument)
        if key not in self.memo:
            # The value is kept beside its result: an id is only good while its object lives.
            self.memo[key] = (value, make())
        return self.memo[key][1]

    def vary(self, value: Value, axes) -> Value:
        """Cast to a type that may differ along `axes`; its transpose sums gradients over them."""
        missing = tuple(sorted(frozenset(axes) - varying(value.array)))
        if not missing:
            return value

        def make():
            if piece := self.pieces.get(id(value)):
                # Cast sharded and gathered anew (the first gather is dead code then), so that
                # what the transpose sums over these axes is a scattered shard, not all of it.
                with self.state.aside():
                    return self.used(self.vary(piece, missing))
            return Value(as_varying(value.array, missing), value.dims, value.use, value.whose)

        return self._once(value, "vary", missing, make)

    def used(self, value):
        """Gather what is stored sharded, or arrives so, to the placement it is computed with."""
        if isinstance(value, Deferred) or value.use is None:
            return value

        def make():
            if value.whose is None:
                whole = self._move(Value(value.array, value.dims), value.use, stored=True)
                return Value(checkpoint_name(whole.array, ARRIVED), whole.dims)
            # The name ends up in the compiled program, where it tells whose gather it is.
            with weight_scope(value.whose):
                return self._move(Value(value.array, value.dims), value.use, stored=True)

        self.gathers = self.gathers or value.whose is not None
        whole = self._once(value, "used", None, make)
        self.pieces[id(whole)] = value
        return whole

    def settle(self, value) -> Value:
        """A value as a Value, in the placement that it has by itself."""
        return self.place(value, value.use if getattr(value, "use", None) else value.dims)

    def place(self, value: Any, dims: Placement) -> Any:
        """A value in placement `dims`: gathered where it is sharded more, sliced where it is less.

        An axis that goes from one dim to another is neither: that is an all-to-all.
        """
        if isinstance(value, Deferred):
            return self._once(value, "place", dims, lambda: self._make(value, dims))
        if value.dims == dims and value.use is not None:
            return Value(value.array, dims)  # it goes back to where it is stored
        value = self.used(value)
        if value.dims == dims:
            return value
        return self._once(value, "place", dims, lambda: self._move(value, dims))

    def _move(self, value: Any, dims: Placement, *, stored: bool = False) -> Value:
        """A value in another placement, by gathers and slices; `stored` for a weight."""
        # All gathers first: they free the axes that a slice may need.
        value = value if stored else self._exchanged(value, dims)
        now = list(value.dims)
        array = value.array
        for d, (have, want) in enumerate(zip(value.dims, dims, strict=True)):
            same = 0
            while same < min(len(have), len(want)) and have[same] == want[same]:
                same += 1
            if excess := have[same:]:
                # A stored weight is cast to nothing: the products that use it differ by device, and
                # the transpose is then a reduce-scatter. An activation becomes equal everywhere.
                to = "varying" if stored else "invarying"
                array = lax.all_gather(array, excess, axis=d, tiled=True, to=to)
                now[d] = have[:same]
                over = " and ".join(f"'{axis}'" for axis in excess)
                reason = (
                    f"a weight stored sharded over {over} is gathered for use"
                    if stored
                    else f"{self.state.primitive} needs all of dim {d}, sharded over {over}"
                )
                self.state.note("all-gather", excess, reason, array)
        result = Value(array, tuple(now)) if now != list(value.dims) else value
        for d, want in enumerate(dims):
            if lacking := want[len(now[d]) :]:
                now[d] = want
                result = self._slice(result, d, lacking, tuple(now))
        return result

    def _exchanged(self, value: Value, dims: Placement) -> Value:
        """The value after all-to-alls, for axes that only go from one dim to another."""
        array, now = value.array, list(value.dims)
        for d, want in enumerate(dims):
            moving = now[d][len(want) :] if now[d][: len(want)] == want else ()
            takers = [e for e, wanted in enumerate(dims) if wanted == (*now[e], *moving) and e != d]
            if not moving or not takers or array.shape[takers[0]] % self.state.count(moving):
                continue
            (e,) = takers
            array = lax.all_to_all(array, moving, split_axis=e, concat_axis=d, tiled=True)
            now[d], now[e] = want, dims[e]
            over = " and ".join(f"'{axis}'" for axis in moving)
            reason = f"{self.state.primitive} needs dim {e} sharded over {over}, and dim {d} is"
            self.state.note("all-to-all", moving, reason, array)
        return Value(array, tuple(now)) if now != list(value.dims) else value

    def _slice(self, value: Value, d: int, axes, dims: Placement) -> Value:
        """A value with its dim `d` sharded over more axes, each device keeping its own shard."""
        array = self.vary(value, axes).array
        count = self.state.count(axes)
        if array.shape[d] % count:
            raise self.state.refuse(f"dim {d} of size {array.shape[d]} does not divide by {count}")
        size = array.shape[d] // count
        return Value(lax.dynamic_slice_in_dim(array, lax.axis_index(axes) * size, size, d), dims)

    def _make(self, value: Deferred, dims: Placement) -> Value:
        """A deferred value made on shards of placement `dims`."""
        shape = local_shape(value.shape, dims, self.state.sizes)
        if value.source is None:
            along = value.along
            assert along is not None
            array = lax.broadcasted_iota(value.dtype, shape, along)
            if axes := dims[along]:
                offset = lax.axis_index(axes) * shape[along]
                array = array + offset.astype(value.dtype)
            return self.vary(Value(array, dims), axes_of(dims))
        source = self.used(value.source)
        wanted = tuple(
            dims[at] if size != 1 or value.shape[at] == 1 else ()
            for size, at in zip(self.global_shape(source), value.where, strict=True)
        )
        # Cast before broadcasting, so that the gradient is summed after it has shrunk again.
        source = self.vary(self.place(source, wanted), axes_of(dims))
        return Value(lax.broadcast_in_dim(source.array, shape, value.where), dims)

    def global_shape(self, value) -> tuple[int, ...]:
        """The shape of the whole array of which a value is this device's shard."""
        if isinstance(value, Deferred):
            return value.shape
        return tuple(
            size * prod(self.state.sizes[axis] for axis in axes)
            for size, axes in zip(np.shape(value.array), value.dims, strict=True)
        )

    def walk(self, jaxpr, consts, args, live=None) -> list:
        """Run a jaxpr written for whole arrays on values; `live` marks results with a gradient."""
        return self.run(jaxpr, consts, args, Beside(set_of_live(jaxpr, live), targets(jaxpr)))

    def constant(self, value):
        """A constant, which is replicated."""
        return constant(value)

    def literal(self, atom):
        """A number that is written in an equation."""
        return literal(atom)

    def wanted(self, jaxpr: Any):
        """The equations whose results anything asks for: no collective for dead code."""
        pairs = zip(enumerate(jaxpr.eqns), needed(jaxpr), strict=True)
        return (numbered for numbered, is_needed in pairs if is_needed)

    def inner(self, beside, index):
        """Nothing: inner jaxprs are walked by rules, each with a frame of its own."""
        return ()

    def equation(self, eqn, operands, here):
        """Run an equation by the rule of its primitive, of its kind, or of all."""
        rules, name = self.state.rules, eqn.primitive.name
        rule = rules.get(name) or rules.get(rule_of(eqn).kind) or rules[""]
        live = [var in here.beside.live for var in eqn.outvars]
        outer, self.target = self.target, self.target_of(eqn, here.beside)
        results = rule(self, eqn, operands, live)
        self.target = outer
        return results

    def target_of(self, eqn, beside) -> Placement | None:
        """Where the result of an equation goes at once, if it is named so next."""
        names = beside.targets.get(eqn.outvars[0]) if eqn.outvars else None
        if names is None or self.state.place is None:
            return None
        spec = self.state.place(names, tuple(eqn.outvars[0].aval.shape)).between
        return placement_of(spec, eqn.outvars[0].aval.ndim)


@dataclass(frozen=True)
class Beside:
    """What is known of a jaxpr's variables: those with a gradient, and the names of those that next
    leave a part of a block, and are used for nothing else."""

    live: set
    targets: dict


def targets(jaxpr) -> dict:
    """Variable -> names, of what is only named as leaving a part of a block, by checkpoint names
    (`out_proj`) before that or not."""
    uses = Counter(v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal))
    uses.update(v for v in jaxpr.outvars if not isinstance(v, Literal))
    found = {}
    for eqn in reversed(jaxpr.eqns):
        name = eqn.primitive.name
        if name == NAMED and eqn.params["says"] == LEAVING:
            names = eqn.params["names"]
        else:
            names = found.get(eqn.outvars[0]) if name == "name" else None
        if (
            names is not None
            and not isinstance(eqn.invars[0], Literal)
            and uses[eqn.invars[0]] == 1
        ):
            found[eqn.invars[0]] = names
    return found


def set_of_live(jaxpr, live=None) -> set:
    """The variables through which a gradient can flow, given which results carry one (else all).

    Softmax subtracts `stop_gradient(max)`: that maximum is not live, and may use pmax, which JAX
    cannot differentiate.
    """
    flags = [True] * len(jaxpr.outvars) if live is None else live
    found = {
        v
        for v, flag in zip(jaxpr.outvars, flags, strict=True)
        if flag and not isinstance(v, Literal) and _has_gradient(v)
    }
    for eqn in reversed(jaxpr.eqns):
        if eqn.primitive.name != "stop_gradient" and any(v in found for v in eqn.outvars):
            found.update(v for v in eqn.invars if not isinstance(v, Literal) and _has_gradient(v))
    return found


def _has_gradient(var) -> bool:
    """Whether a variable has a gradient by its dtype."""
    return jax.numpy.issubdtype(var.aval.dtype, jax.numpy.inexact)
