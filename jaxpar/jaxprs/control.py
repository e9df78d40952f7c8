"""Equations that hold jaxprs: calls, loops, branches, and regions on shards.

Each rule walks what is inside with the dims of its operands, and joins what comes out with what is
handed on.
"""

from __future__ import annotations

from jaxpar.core.jax_compat import scan_parts
from jaxpar.core.mesh import axes_of
from jaxpar.jaxprs.facts import either, in_every_turn
from jaxpar.jaxprs.interpreter import held_by, solver_of


def call(walk, eqn, index, scope, times, where):
    """Relate dims through a jit, a remat or a function with its own derivative."""
    jaxpr = held_by(eqn)
    operands = [walk.dims(scope, a) for a in eqn.invars]
    facts = [walk.fact(a) for a in eqn.invars]
    results = walk.inner(jaxpr, operands, facts, scope, index, times, where)
    for var, (dims, fact) in zip(eqn.outvars, results, strict=True):
        scope.dims[var], walk.facts[var] = list(dims), fact


def solve(walk, eqn, index, scope, times, where):
    """Relate dims through the function that solves a linear system."""
    held, given = solver_of(eqn)
    operands = [walk.dims(scope, eqn.invars[k]) for k in given]
    facts = [walk.fact(eqn.invars[k]) for k in given]
    results = walk.inner(held, operands, facts, scope, index, times, where)
    for var, (dims, fact) in zip(eqn.outvars, results, strict=True):
        scope.dims[var], walk.facts[var] = list(dims), fact


def scan(walk, eqn, index, scope, times, where):
    """Relate the dims of a scan: a carry keeps its dims, a scanned array loses its first."""
    p = eqn.params
    consts, carries = scan_parts(p)
    held = carries - consts
    dims = [walk.dims(scope, a) for a in eqn.invars]
    facts = [walk.fact(a) for a in eqn.invars]
    turns = () if p["length"] == 1 else (walk.classes.new(p["length"]),)
    for d, fact in zip(dims[carries:], facts[carries:], strict=True):
        walk.classes.unify(turns, d[0])
        (walk.stacked if fact.is_weight else walk.turned).append(turns)
    carried = in_every_turn(p["jaxpr"], facts[:consts], facts[consts:carries], facts[carries:])
    inside = [*facts[:consts], *carried, *facts[carries:]]
    operands = [*dims[:carries], *(d[1:] for d in dims[carries:])]
    results = walk.inner(p["jaxpr"], operands, inside, scope, index, times * p["length"], where)
    for k, var in enumerate(eqn.outvars):
        made, fact = results[k]
        if k < held:
            walk.join(dims[consts + k], made)
            scope.dims[var], walk.facts[var] = list(dims[consts + k]), carried[k]
        else:
            scope.dims[var], walk.facts[var] = [turns, *made], fact


def while_loop(walk, eqn, index, scope, times, where):
    """Relate the dims of a while loop's carry before and after a turn."""
    p = eqn.params
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    dims = [walk.dims(scope, a) for a in eqn.invars]
    facts = [walk.fact(a) for a in eqn.invars]
    carried = dims[second:]
    held = in_every_turn(p["body_jaxpr"], facts[first:second], facts[second:])
    walk.inner(
        p["cond_jaxpr"],
        [*dims[:first], *carried],
        [*facts[:first], *held],
        scope,
        index,
        times,
        where,
    )
    results = walk.inner(
        p["body_jaxpr"],
        [*dims[first:second], *carried],
        [*facts[first:second], *held],
        scope,
        index,
        times,
        where,
    )
    for var, before, (after, _), fact in zip(eqn.outvars, carried, results, held, strict=True):
        walk.join(before, after)
        scope.dims[var], walk.facts[var] = list(before), fact


def cond(walk, eqn, index, scope, times, where):
    """Relate the dims of the results of a conditional's branches."""
    _, *rest = eqn.invars
    dims = [walk.dims(scope, a) for a in rest]
    facts = [walk.fact(a) for a in rest]
    made = [
        walk.inner(branch, dims, facts, scope, index, times, where)
        for branch in eqn.params["branches"]
    ]
    for k, var in enumerate(eqn.outvars):
        first, fact = made[0][k]
        for other in made[1:]:
            walk.join(first, other[k][0])
        scope.dims[var] = list(first)
        walk.facts[var] = either([fact, *(other[k][1] for other in made[1:])])


def shard_map(walk, eqn, index, scope, times, where):
    """Relate dims through a shard_map: those that it does not shard are the same inside."""
    p = eqn.params
    jaxpr = p["jaxpr"]
    inside = []
    for atom, var, spec in zip(eqn.invars, jaxpr.invars, p["in_specs"], strict=True):
        entries = [*spec, *[None] * (len(atom.aval.shape) - len(spec))]
        inside.append(
            [
                walk.classes.dim(size) if axes_of(entry) else outer
                for outer, entry, size in zip(
                    walk.dims(scope, atom), entries, var.aval.shape, strict=True
                )
            ]
        )
    facts = [walk.fact(a) for a in eqn.invars]
    results = walk.inner(jaxpr, inside, facts, scope, index, times, where)
    for var, spec, (made, fact) in zip(eqn.outvars, p["out_specs"], results, strict=True):
        entries = [*spec, *[None] * (len(var.aval.shape) - len(spec))]
        scope.dims[var] = [
            walk.classes.dim(size) if axes_of(entry) else dim
            for dim, entry, size in zip(made, entries, var.aval.shape, strict=True)
        ]
        walk.facts[var] = fact


def layers(walk, eqn, index, scope, times, where):
    """Relate the dims of a `layers` primitive: as of a scan over the stacks."""
    p = eqn.params
    consts, end = p["consts"], p["consts"] + p["stacked"]
    dims = [walk.dims(scope, a) for a in eqn.invars]
    facts = [walk.fact(a) for a in eqn.invars]
    length = eqn.invars[consts].aval.shape[0]
    turns = () if length == 1 else (walk.classes.new(length),)
    for d, fact in zip(dims[consts:end], facts[consts:end], strict=True):
        walk.classes.unify(turns, d[0])
        (walk.stacked if fact.is_weight else walk.turned).append(turns)
    carried = in_every_turn(p["body"], facts[:end], facts[end:])
    inside = [*facts[:end], *carried]
    operands = [*dims[:consts], *(d[1:] for d in dims[consts:end]), *dims[end:]]
    results = walk.inner(p["body"], operands, inside, scope, index, times * length, where)
    pairs = zip(dims[end:], results, eqn.outvars, carried, strict=True)
    for before, (after, _), var, fact in pairs:
        walk.join(before, after)
        scope.dims[var], walk.facts[var] = list(before), fact


RULES = {
    **dict.fromkeys(("call", "remat", "custom"), call),
    "solve": solve,
    "scan": scan,
    "while": while_loop,
    "cond": cond,
    "shards": shard_map,
    "layers": layers,
}
"""Kind of a primitive that holds jaxprs -> how the dims around it and in it relate."""
