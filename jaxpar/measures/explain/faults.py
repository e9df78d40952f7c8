"""A partial sum that is not reduced as it should be, in a sentence with its line."""

from __future__ import annotations

from jaxpar.hlo.fault import Fault
from jaxpar.hlo.parse import Instruction
from jaxpar.measures.explain.meaning import line_among
from jaxpar.measures.explain.places import Places

_SAYS = {
    "not reduced": "{used} uses it before it is reduced over `{axis}`",
    "added too early": "{used} joins it with what is already summed over `{axis}`",
    "handed out": "the program returns it as {result} without reducing it over `{axis}`",
    "wrong group": "{used} sums copies over other devices, and leaves it partial over `{axis}`",
    "summed twice": "{used} sums over `{axis}` what is already summed over it",
}
_REPAIR = {
    "not reduced": "reduce it first, with jax.lax.psum over that axis where the code is per shard",
    "added too early": "reduce it first, or add what is whole on one device only",
    "handed out": "reduce it with jax.lax.psum over that axis",
    "wrong group": "reduce over the axis that shards the dim",
    "summed twice": "leave one of the two sums out",
}


def told_of(fault: Fault, places: Places) -> str:
    """A fault as one sentence: where, what, and the repair."""
    where = line_among(fault.used.frames) or line_among(fault.made.frames) or "somewhere"
    known = 0 <= fault.result < len(places.results)
    result = places.results[fault.result].name if known else "a result"
    says = _SAYS[fault.kind].format(used=_named(fault.used), axis=fault.axis, result=result)
    made = line_among(fault.made.frames)
    over = f" over dim {' and '.join(f'`{d}`' for d in fault.dims)}" if fault.dims else ""
    begun = (
        ""
        if fault.kind == "summed twice"
        else (
            f"{_named(fault.made)}{f' at {made}' if made else ''} makes a partial sum{over}, and "
        )
    )
    return f"{where}: {begun}{says}: {_REPAIR[fault.kind]}"


def _named(i: Instruction) -> str:
    """What the person's code calls an operation."""
    return i.op_name.rpartition("/")[2] or i.opcode
