"""Functions with derivative rules of their own: the rule is traced at global shapes and walked too.

Inlining them would give relu another slope at 0, and would lose a custom backward pass.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal

from jaxpar.core.varying import varying
from jaxpar.jaxprs.alone import alone
from jaxpar.spmd.carry import Carry
from jaxpar.spmd.frame import Frame
from jaxpar.spmd.value import Value, axes_of, literal, replicated


class _Alone:
    """One equation as a function of its distinct variables, with its derivatives as jaxprs."""

    def __init__(self, eqn):
        self.inner = eqn.params["call_jaxpr"]
        self.eqn = eqn
        self.vars, self.function = alone(eqn)
        self.smooth = [i for i, v in enumerate(self.vars) if _smooth(v)]
        self.smooth_out = [k for k, v in enumerate(eqn.outvars) if _smooth(v)]
        self.abstract = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.vars]
        self.tangents = [self.abstract[i] for i in self.smooth]

    def _of_smooth(self, args):
        """The function of its differentiable arguments: (differentiable results, all results)."""

        def function(*moving):
            full = list(args)
            for i, x in zip(self.smooth, moving, strict=True):
                full[i] = x
            results = self.function(*full)
            return [results[k] for k in self.smooth_out], results

        return function

    @cached_property
    def jvp(self):
        """Read (arguments, tangents) to (results, tangents), smooth ones only for the tangents."""

        def run(args, tangents):
            _, out, results = jax.jvp(
                self._of_smooth(args), [args[i] for i in self.smooth], tangents, has_aux=True
            )
            return results, out

        return jax.make_jaxpr(run)(self.abstract, self.tangents)

    @cached_property
    def forward(self):
        """Read arguments to (results, residuals), and what to rebuild the residuals' tree with."""

        def run(*args):
            _, back, results = jax.vjp(
                self._of_smooth(args), *[args[i] for i in self.smooth], has_aux=True
            )
            return results, back

        jaxpr, (_, back) = jax.make_jaxpr(run, return_shape=True)(*self.abstract)
        return jaxpr, jax.tree.structure(back), jax.tree.leaves(back)

    @cached_property
    def backward(self):
        """Read (residuals, cotangents) to the smooth arguments' cotangents."""
        _, tree, leaves = self.forward
        out = [self.eqn.outvars[k].aval for k in self.smooth_out]

        def run(residuals, cotangents):
            return jax.tree.unflatten(tree, residuals)(cotangents)

        return jax.make_jaxpr(run)(
            leaves, [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in out]
        )


class _Call:
    """One such equation being walked: its operands held, its results' placement agreed upon."""

    def __init__(self, frame, eqn, operands):
        self.run = frame.state
        self.alone = self.run.custom.setdefault(id(eqn), None) or _Alone(eqn)
        self.run.custom[id(eqn)] = self.alone
        held = {
            v: frame.settle(x)
            for v, x in zip(eqn.invars, operands, strict=True)
            if not isinstance(v, Literal)
        }
        self.args = [held[v] for v in self.alone.vars]
        self.outcome = Carry([Value(np.zeros(()), replicated(v.aval.ndim)) for v in eqn.outvars])

    def wrap(self, arrays, like=None):
        """Local arrays as Values, placed as the operands that they replace."""
        like = self.args if like is None else like
        return [Value(array, v.dims) for array, v in zip(arrays, like, strict=True)]

    def walk(self, closed, values, unsummed=None):
        """The frame and results of a rule on shards; none of its results has a gradient.

        `unsummed` is a result's variable -> the axes over which its devices may keep parts of it.
        """
        child = Frame(self.run)
        child.unsummed = {v: [axes, ()] for v, axes in (unsummed or {}).items()}
        silent = [False] * len(closed.jaxpr.outvars)
        return child, child.walk(closed.jaxpr, closed.consts, values, silent)

    def primal(self, arrays):
        """The results of the function itself, on shards."""
        alone, values = self.alone, dict(zip(self.alone.vars, self.wrap(arrays), strict=True))
        closed = alone.inner
        operands = [literal(v) if isinstance(v, Literal) else values[v] for v in alone.eqn.invars]
        return self.walk(closed, operands)

    def settle(self, *walks):
        """Join the placements of several ways of computing the results, until they agree."""
        arrays = [v.array for v in self.args]
        log = []

        def probe(arrays):
            changes = []
            for k, walk in enumerate(walks):
                with self.run.aside() as entries:
                    child, results = walk(arrays)
                    changes.append(self.outcome.join(child, results))
                if k == 0:
                    log[:] = entries
            return any(changes)

        self.run.repeat(probe, lambda: (arrays,))
        self.run.keep(log)

    def plain(self, *arrays):
        """The function's local results from local arrays."""
        with self.run.aside():
            return self.outcome.arrays(*self.primal(arrays))


def _inline(frame, eqn, operands):
    """The results of the custom function's own body."""
    # A rule may call its own function (relu's does); where nothing is differentiated the function
    # itself is enough.
    closed = eqn.params["call_jaxpr"]
    return frame.walk(closed.jaxpr, closed.consts, operands, [False] * len(eqn.outvars))


def custom_jvp(frame, eqn, operands, live):
    """The results of a custom_jvp on shards, with the same forward rule."""
    if not any(live):
        return _inline(frame, eqn, operands)
    call = _Call(frame, eqn, operands)
    alone = call.alone
    count = len(eqn.outvars)

    def rule(arrays, tangents):
        moving = call.wrap(tangents, [call.args[i] for i in alone.smooth])
        child, both = call.walk(alone.jvp, [*call.wrap(arrays), *moving])
        # A tangent has the placement and type of its result, so it stands in its place.
        moved = both[:count]
        for k, tangent in zip(alone.smooth_out, both[count:], strict=True):
            moved[k] = tangent
        return child, both[:count], moved

    def try_results(arrays):
        child, results, _ = rule(arrays, [arrays[i] for i in alone.smooth])
        return child, results

    def try_tangents(arrays):
        child, _, moved = rule(arrays, [arrays[i] for i in alone.smooth])
        return child, moved

    call.settle(call.primal, try_results, try_tangents)
    function = jax.custom_jvp(call.plain)

    @function.defjvp
    def _(primals, tangents):
        with call.run.aside():
            child, results, moved = rule(primals, [tangents[i] for i in alone.smooth])
            arrays, moved = call.outcome.arrays(child, results), call.outcome.arrays(child, moved)
        return arrays, [
            moved[k] if k in alone.smooth_out else _no_tangent(a) for k, a in enumerate(arrays)
        ]

    return call.outcome.wrap(function(*[v.array for v in call.args]))


def custom_vjp(frame, eqn, operands, live):
    """The results of a custom_vjp on shards, with the same backward rule."""
    if not any(live):
        return _inline(frame, eqn, operands)
    call = _Call(frame, eqn, operands)
    alone, run = call.alone, call.run
    count = len(eqn.outvars)
    kept: list[Value] = []

    def forward(arrays):
        child, both = call.walk(alone.forward[0], call.wrap(arrays))
        return child, both[:count], both[count:]

    call.settle(call.primal, lambda arrays: forward(arrays)[:2])
    function = jax.custom_vjp(call.plain)

    def fwd(*arrays):
        with run.aside():
            child, results, residuals = forward(arrays)
            kept[:] = [child.settle(v) for v in residuals]
            return call.outcome.arrays(child, results), [v.array for v in kept]

    def bwd(residuals, cotangents):
        with run.aside():
            whole = [
                _whole_cotangent(run, cotangents[k], call.outcome.dims[k], call.outcome.axes[k])
                for k in alone.smooth_out
            ]
            found = alone.backward.jaxpr.outvars
            shares = _made_last(alone.backward.jaxpr)
            unsummed = {
                var: _copies(run, call.args[i])
                for i, var in zip(alone.smooth, found, strict=True)
                if var in shares
            }
            values = [*call.wrap(residuals, kept), *whole]
            child, results = call.walk(alone.backward, values, unsummed)
            answer = [None] * len(call.args)
            for i, v, var in zip(alone.smooth, results, found, strict=True):
                parts = child.unsummed[var][1] if var in unsummed else ()
                answer[i] = _own_share(child, v, call.args[i], parts)
        return tuple(answer)

    function.defvjp(fwd, bwd)
    return call.outcome.wrap(function(*[v.array for v in call.args]))


def _whole_cotangent(run, array, dims, axes):
    """A result's cotangent as a Value, summed over axes along which devices hold parts of it."""
    # A result that is equal on devices, but typed as varying, comes back with each device's part.
    # Along axes that are not the run's own, as the stages of a pipeline, devices differ altogether.
    parts = tuple(sorted((axes & run.sizes.keys()) - axes_of(dims)))
    return Value(lax.psum(array, parts) if parts else array, dims)


def _made_last(jaxpr) -> set:
    """The results of a jaxpr that none of its equations reads, and that it gives once."""
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if not isinstance(v, Literal)}
    times = Counter(v for v in jaxpr.outvars if not isinstance(v, Literal))
    return {v for v, count in times.items() if count == 1 and v not in read}


def _copies(run, operand) -> frozenset[str]:
    """The axes along which an operand is replicated, and by its type may yet differ: JAX adds up
    what its replicas return."""
    return (varying(operand.array) & run.sizes.keys()) - axes_of(operand.dims)


def _own_share(frame, value, operand, parts=()):
    """Turn the cotangent of a whole operand into what JAX's type of that operand asks for; along
    the axes `parts` each device has a part of it."""
    value = frame.place(value, operand.dims)
    held, wanted = varying(value.array), varying(operand.array)
    own, array = frame.state.sizes.keys(), value.array
    if extra := tuple(sorted((held - wanted) & own)):
        array = lax.pmean(array, extra)  # equal on these devices, which the type did not know
    if others := tuple(sorted(held - wanted - own)):
        array = lax.psum(array, others)  # of devices that each use the operand in their own way
    if copies := tuple(sorted(_copies(frame.state, operand) - set(parts))):
        # JAX adds up what the replicas of an operand return, so each returns its share.
        array = array / frame.state.count(copies)
    return frame.vary(Value(array, operand.dims), wanted).array


def _smooth(var) -> bool:
    """Whether a variable has a gradient by its dtype."""
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _no_tangent(array):
    """The zero that JAX asks for as the gradient of integers."""
    return np.zeros(np.shape(array), jax.dtypes.float0)


def custom(frame, eqn, operands, live):
    """The results of a function with its own derivative, on shards, by the same rule."""
    is_forward = "jvp_jaxpr_fun" in eqn.params or "jvp" in eqn.primitive.name
    return (custom_jvp if is_forward else custom_vjp)(frame, eqn, operands, live)


RULES = {"custom": custom}
