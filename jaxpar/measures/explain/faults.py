"""A partial sum that is not reduced as it should be, as a finding with its line."""

from __future__ import annotations

from jaxpar.hlo.fault import Fault
from jaxpar.hlo.parse import Instruction, bytes_of
from jaxpar.measures.explain.meaning import frame_among, line_among
from jaxpar.measures.explain.places import Places
from jaxpar.measures.finding import Finding

_NOWHERE = "somewhere"

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


_MEANT = ", or accept it with --lint warn where each device's own sum is meant"


def finding_of(fault: Fault, places: Places, by_hand: bool = False) -> Finding:
    """A fault as a finding: where, what, and the repair.

    Args:
        fault: from the partitioned module.
        places: the arrays of the step.
        by_hand: whether the loss is per shard in part, so that a local sum may be meant.
    """
    where = line_among(fault.used.frames) or line_among(fault.made.frames) or _NOWHERE
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
    frame = frame_among(fault.used.frames) or frame_among(fault.made.frames)
    return Finding(
        kind="partial sum",
        where=where,
        says=f"{begun}{says}",
        repair=_REPAIR[fault.kind] + (_MEANT if by_hand else ""),
        source="" if where == _NOWHERE else where,
        module=frame.function if frame else "",
        bytes=sum(map(bytes_of, fault.made.shapes)),
    )


def _named(i: Instruction) -> str:
    """What the person's code calls an operation."""
    return i.op_name.rpartition("/")[2] or i.opcode
