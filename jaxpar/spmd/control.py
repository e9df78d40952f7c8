"""Equations that hold other functions: calls are walked through, loops find a placement that lasts.

A loop's carry keeps its placement and its type from turn to turn: where it starts replicated and
the body makes it split, it is sliced before the loop. A body that gathers stored weights does not
keep them for the backward pass, which gathers again (the textbook's sharded data parallelism).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import lax

from jaxpar.core.jax_compat import open_jaxpr, scan_parts
from jaxpar.jaxprs.interpreter import held_by, loop
from jaxpar.jaxprs.policy import keep_all_but_cheap
from jaxpar.jaxprs.rules import rule_named
from jaxpar.spmd.carry import Carry
from jaxpar.spmd.frame import Frame
from jaxpar.spmd.value import Deferred, Value, replicated


def _but_gathers(policy):
    """A remat's policy, except that it never saves a gathered weight."""
    if policy is None:
        return None  # saves nothing at all

    def keep(primitive, *args, **params):
        return not rule_named(primitive.name).traffic and policy(primitive, *args, **params)

    return keep


def regather(fn, *, looped: bool):
    """`fn`, rematerialised so that its gathered weights are gathered again in backward."""
    # Outside a loop XLA would find the second gather equal to the first and keep its result.
    return jax.checkpoint(fn, policy=keep_all_but_cheap, prevent_cse=not looped)


def call(frame, eqn, operands, live):
    """The results of an inner jit, inlined."""
    jaxpr, consts = open_jaxpr(held_by(eqn))
    return frame.walk(jaxpr, consts, operands, live)


def remat(frame, eqn, operands, live):
    """The results, by the same remat of the walked body."""
    jaxpr, consts = open_jaxpr(eqn.params["jaxpr"])
    entries = []

    def body(*values):
        with frame.state.aside() as log:
            results = [*Frame(frame.state).walk(jaxpr, consts, values, live)]
        entries[:] = log
        return results

    body = jax.checkpoint(
        body, prevent_cse=eqn.params["prevent_cse"], policy=_but_gathers(eqn.params["policy"])
    )
    results = body(*operands)
    frame.state.keep(entries)
    return results


def _lift(frame, child, roots):
    """The movements of a loop's constants that every turn makes, made once before the loop.

    A recurrent weight is then cast once, and its gradient summed over devices once, after all
    turns have added to it. Stored weights stay: they are gathered in the body.
    """
    twin = {id(v): v for v in roots}
    memo = {}
    for (ident, movement, argument), (_, result) in child.memo.items():
        if ident in twin and movement in ("vary", "place"):
            value = twin[ident]
            if getattr(value, "use", None) is not None or isinstance(value, Deferred):
                continue
            moved = getattr(frame, movement)(value, argument)
            twin[id(result)] = moved
            memo[id(value), movement, argument] = (value, moved)
    return memo


def scan(frame, eqn, operands, live):
    """The results, by the same scan over local slices; weights are gathered turn by turn."""
    p, run = eqn.params, frame.state
    inner = p["jaxpr"]
    first, second = scan_parts(p)
    consts, init = operands[:first], operands[first:second]
    xs = [_whole_front(frame, v) for v in operands[second:]]
    carry = Carry(init)
    state: dict[str, Any] = {"memo": {}}
    # A carry feeds the next turn, so one live result makes all of them live.
    alive = [any(live)] * len(eqn.outvars)

    def turn(child, held, slices):
        values = [
            Value(array, v.dims[1:], None if v.use is None else v.use[1:], v.whose)
            for v, array in zip(xs, slices, strict=True)
        ]
        return child.walk(inner.jaxpr, inner.consts, [*consts, *carry.wrap(held), *values], alive)

    def probe(held, stacked):
        child = state["child"] = Frame(run)
        slices = [lax.index_in_dim(x, 0, keepdims=False) for x in stacked]
        results = turn(child, held, slices)
        return carry.join(child, results[: len(init)])

    run.repeat(probe, lambda: (carry.arrays(frame, init), [v.array for v in xs]))
    state["memo"] = _lift(frame, state["child"], consts)

    def body(held, slices):
        child = Frame(run, state["memo"])
        with run.aside() as log:
            results = turn(child, held, slices)
            after = carry.arrays(child, results[: len(init)])
            ys = [child.settle(v) for v in results[len(init) :]]
        state["log"], state["ys"] = log, [v.dims for v in ys]
        return after, [v.array for v in ys]

    last, stacked = loop(
        eqn,
        regather(body, looped=p["unroll"] == 1) if state["child"].gathers else body,
        carry.arrays(frame, init),
        [v.array for v in xs],
    )
    run.keep(state["log"], times=p["length"], looped=True)
    ys = [Value(y, ((), *dims)) for y, dims in zip(stacked, state["ys"], strict=True)]
    return [*carry.wrap(last), *ys]


def _whole_front(frame, value):
    """A stack whose scanned dim is not sharded; a weight stored otherwise stays sharded."""
    if isinstance(value, Value) and value.use is not None:
        if not value.dims[0] and not value.use[0]:
            return value
        value = frame.used(value)
    value = frame.settle(value)
    return frame.place(value, ((), *value.dims[1:]))


def while_loop(frame, eqn, operands, live):
    """The results, by the same while loop; its condition is equal on all devices."""
    p, run = eqn.params, frame.state
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    cond_consts, body_consts, init = operands[:first], operands[first:second], operands[second:]
    carry = Carry(init)
    state = {}

    def walk(child, closed, consts, held):
        silent = [False] * len(closed.jaxpr.outvars)  # JAX has no gradient of a while loop
        return child.walk(closed.jaxpr, closed.consts, [*consts, *carry.wrap(held)], silent)

    def probe(held):
        child = Frame(run)
        return carry.join(child, walk(child, p["body_jaxpr"], body_consts, held))

    def body(held):
        child = Frame(run)
        with run.aside() as log:
            after = carry.arrays(child, walk(child, p["body_jaxpr"], body_consts, held))
        state["body"] = log
        return after

    def condition(held):
        child = Frame(run)
        with run.aside() as log:
            (go,) = walk(child, p["cond_jaxpr"], cond_consts, held)
            result = child.place(go, ()).array
        state["condition"] = log
        return result

    run.repeat(probe, lambda: (carry.arrays(frame, init),))
    last = lax.while_loop(condition, body, carry.arrays(frame, init))
    run.keep([*state["condition"], *state["body"]], looped=True)
    return carry.wrap(last)


def cond(frame, eqn, operands, live):
    """The results, by the same conditional; branches end in one placement and type."""
    index, *rest = operands
    run = frame.state
    outcome = Carry([Value(np.zeros(()), replicated(v.aval.ndim)) for v in eqn.outvars])
    entries: dict[int, list] = {}
    gathering = False

    def walk(closed):
        child = Frame(run)
        return child, child.walk(closed.jaxpr, closed.consts, rest, live)

    def probe():
        nonlocal gathering
        changed = []
        for closed in eqn.params["branches"]:
            child, results = walk(closed)
            changed.append(outcome.join(child, results))
            gathering |= child.gathers
        return any(changed)

    run.repeat(probe, tuple)

    def branch(k, closed):
        def body():
            with run.aside() as log:
                child, results = walk(closed)
                after = outcome.arrays(child, results)
            entries[k] = log
            return after

        return regather(body, looped=False) if gathering else body

    branches = [branch(k, closed) for k, closed in enumerate(eqn.params["branches"])]
    results = lax.switch(frame.place(index, ()).array, branches)
    for log in entries.values():
        run.keep(log)
    return outcome.wrap(results)


RULES = {
    "call": call,
    "remat": remat,
    "scan": scan,
    "while": while_loop,
    "cond": cond,
}
"""Kind of a primitive that holds jaxprs -> how it is run on shards."""
