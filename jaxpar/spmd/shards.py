"""A shard_map inside the function: its body runs on the shards that are there, as it stands.

Its collectives are its author's; they are read off the body and listed with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxpar.core.mesh import axes_of as entry_axes
from jaxpar.core.varying import varying
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import rule_of
from jaxpar.spmd.frame import Frame
from jaxpar.spmd.run import Run
from jaxpar.spmd.value import Value, axes_of, constant


def shard_map(frame, eqn, operands, live):
    """Bring the operands to where the body takes them, and run it on these very shards."""
    p, run = eqn.params, frame.state
    if not p.get("check_vma", True):
        raise run.refuse(
            "it has check_vma=False, so what differs between devices is not known: leave that out"
        )
    sizes = {axis: size for axis, size in p["mesh"].shape.items() if size > 1}
    if not run.sizes.items() <= sizes.items():
        raise run.refuse(f"it is mapped over a mesh {sizes}, and the function runs on {run.sizes}")
    arrays = []
    for value, spec, var in zip(operands, p["in_specs"], eqn.invars, strict=True):
        dims = _placement(spec, var.aval.ndim, run.sizes)
        placed = frame.vary(frame.place(value, dims), axes_of(dims))
        if extra := (varying(placed.array) & run.sizes.keys()) - axes_of(dims):
            # Its body was typed for operands that are equal along these axes.
            raise run.refuse(f"an operand may differ along {sorted(extra)}, and its spec is {spec}")
        arrays.append(placed.array)
    body = p["jaxpr"]
    results = _run(run, body, arrays, live)
    for kind, axes, aval, times in _collectives(body):
        run.note(kind, axes, "the function itself asks for it under shard_map", aval, times)
    return [
        Value(array, _placement(spec, var.aval.ndim, run.sizes))
        for array, spec, var in zip(results, p["out_specs"], eqn.outvars, strict=True)
    ]


def _run(run, body, arrays, live):
    """Run the body as it stands, or, where its operands differ along axes that it was not typed
    for, walk through it as through a function of whole arrays on no mesh at all."""
    if all(varying(x) <= run.sizes.keys() for x in arrays):
        return jaxpr_as_fun(ClosedJaxpr(body, ()))(*arrays)
    child = Frame(Run({}, run.rules))
    results = child.walk(body, (), list(map(constant, arrays)), live)
    return [child.settle(value).array for value in results]


def _placement(spec, rank: int, sizes):
    """The placement that a shard_map's spec gives an array of this rank, of axes in `sizes`."""
    entries = [*spec, *[None] * (rank - len(spec))]
    return tuple(tuple(a for a in entry_axes(entry) if a in sizes) for entry in entries)


def _collectives(jaxpr) -> Iterator[tuple]:
    """Kind, axes, result and number of the collectives in a body, those in its loops too."""
    for eqn, times in equations(jaxpr):
        if kind := rule_of(eqn).traffic:
            axes = eqn.params.get("axis_name", eqn.params.get("axes"))
            yield kind, entry_axes(axes), eqn.outvars[0].aval, times


RULES = {"shards": shard_map}
