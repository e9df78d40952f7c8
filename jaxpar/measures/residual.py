"""The residual between blocks, kept for backward once a layer: what of it devices have alike.

Tensor parallelism shards what is inside a block and leaves the residual between blocks replicated.
With full rematerialization that residual is most of what is kept: of Llama 2 70B, two rows of 4,096
tokens a device, 86 GB on each of eight devices that share a row.
"""

from dataclasses import dataclass

from jaxpar.core.mesh import axes_of
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import rule_of
from jaxpar.layout.record import itemsize
from jaxpar.step.record import Step

NOTABLE_BYTES = 1 << 30
_SHARDED = {"tensor": "sequence", "hybrid": "data+sequence"}
"""Strategies that leave it replicated -> the same with it sharded."""


@dataclass(frozen=True)
class Residual:
    """A residual that several devices have alike.

    Attributes:
        bytes: of it on each device, of all layers together.
        layers: how often it is kept.
        axes: the mesh axes over which it is replicated, and what is inside a block is sharded.
        strategy: by what name of a strategy it would be sharded.
    """

    bytes: int
    layers: int
    axes: tuple[str, ...]
    strategy: str

    def __str__(self) -> str:
        over = " x ".join(self.axes)
        return (
            f"the residual between blocks is kept for backward {self.layers} times, replicated "
            f"over {over}: {self.bytes / 1e9:.2f} GB per device, which --strategy {self.strategy} "
            "shards"
        )


def residual_of(step: Step) -> Residual | None:
    """The residual of a step's stacks of layers, if it is notable and could be sharded."""
    layout = step.asked.microbatch
    strategy, mesh = layout.strategy, layout.mesh
    inside = {a for role in ("inner", "heads") for a in strategy.compute.get(role, ())}
    found = [
        (eqn.invars[eqn.params["consts"]].aval.shape[0], var, names)
        for eqn, _ in equations(step.asked.loss.closed)
        if rule_of(eqn).kind == "layers"
        for var, names in zip(eqn.outvars, eqn.params["names"], strict=True)
    ]
    total, most, axes = 0, 0, set()
    for layers, var, names in found:
        spec = step.asked.placement.of(names, tuple(var.aval.shape)).between
        sharded = {a for entry in spec for a in axes_of(entry)}
        whole = {a for a in inside - sharded if mesh.size(a) > 1}
        if whole:
            ways = 1
            for axis in sharded:
                ways *= mesh.size(axis)
            total += layers * var.aval.size * itemsize(var.aval.dtype) // ways
            most, axes = max(most, layers), axes | whole
    if total < NOTABLE_BYTES:
        return None
    named = "+".join(_SHARDED.get(part, part) for part in strategy.name.split("+"))
    over = tuple(axis for axis in mesh.axes if axis in axes)
    return Residual(total, most, over, named)
