"""Where every array that a traced loss names is sharded: computed once, read by every mode.

Auto constrains to it, explicit types it, manual moves to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from jax.sharding import PartitionSpec

from jaxpar.core.annotations import ENTERING, NAMED, USED
from jaxpar.core.mesh import axes_of, entry_of
from jaxpar.core.source_lines import line_of
from jaxpar.inference.record import TracedLoss
from jaxpar.jaxprs.equations import equations
from jaxpar.jaxprs.rules import rule_of
from jaxpar.layout.record import Layout

Names = tuple[str, ...]
"""A name for each dim of an array."""


@dataclass(frozen=True)
class Unmet:
    """A sharding constraint that cannot hold: a dim that its devices do not divide.

    Attributes:
        shape: of the array.
        dim: which of its dims.
        axes: the mesh axes that should have sharded it.
        source: the line that made the array.
    """

    shape: tuple[int, ...]
    dim: int
    axes: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Sharded:
    """How an array is sharded while a part of a block uses it, and between the parts."""

    used: PartitionSpec
    between: PartitionSpec

    def after(self, says: str) -> PartitionSpec:
        """How it is sharded after an annotation USED, ENTERING or LEAVING."""
        return self.used if says in (USED, ENTERING) else self.between


@dataclass(frozen=True)
class Placement:
    """The shardings that a layout gives the arrays that a loss names.

    Attributes:
        layout: by whose tables.
        specs: (names, shape) -> `Sharded`, of every array that the loss names.
        unmet: constraints that cannot hold; such a dim is replicated.
    """

    layout: Layout
    specs: Mapping[tuple[Names, tuple[int, ...]], Sharded]
    unmet: tuple[Unmet, ...]

    def of(self, names: Names, shape: tuple[int, ...]) -> Sharded:
        """How an array of these dims is sharded."""
        known = self.specs.get((names, shape))
        return known or sharded(self.layout, names, shape)


def sharded(layout: Layout, names: Names, shape: tuple[int, ...]) -> Sharded:
    """How a layout shards an array; a dim that does not divide is replicated."""
    return Sharded(
        *(
            _legal(layout, layout.place_of(names, between=between), shape)
            for between in (False, True)
        )
    )


def placement(layout: Layout, traced: TracedLoss) -> Placement:
    """The placement of everything that a traced loss names."""
    specs: dict[tuple[Names, tuple[int, ...]], Sharded] = {}
    unmet: list[Unmet] = []
    for eqn, _ in equations(traced.closed):
        for names, var, is_between in _named_in(eqn):
            shape = tuple(var.aval.shape)
            specs.setdefault((names, shape), sharded(layout, names, shape))
            for between in (False, True) if is_between else (False,):
                asked = layout.place_of(names, between=between)
                unmet += _unmet(layout, asked, shape, eqn)
    return Placement(layout, MappingProxyType(specs), tuple(dict.fromkeys(unmet)))


def _named_in(eqn: Any):
    """(names, variable, whether it is also between parts of a block) of what an equation names."""
    if eqn.primitive.name == NAMED:
        yield eqn.params["names"], eqn.outvars[0], eqn.params["says"] != USED
    elif rule_of(eqn).kind == "layers":
        for names, var in zip(eqn.params["names"], eqn.outvars, strict=True):
            yield names, var, True


def _ways(layout: Layout, entry: Any) -> int:
    """How many shards an entry of a PartitionSpec makes."""
    return prod(layout.mesh.size(axis) for axis in axes_of(entry))


def _legal(layout: Layout, spec: PartitionSpec, shape: tuple[int, ...]) -> PartitionSpec:
    """`spec` without the last axes of an entry that do not divide its dim."""
    entries = []
    for size, entry in zip(shape, spec, strict=True):
        axes = axes_of(entry)
        while size % _ways(layout, axes):
            axes = axes[:-1]
        entries.append(entry_of(axes))
    return PartitionSpec(*entries)


def _unmet(layout: Layout, spec: PartitionSpec, shape: tuple[int, ...], eqn: Any) -> list[Unmet]:
    """An `Unmet` for every entry that does not divide its dim."""
    source = line_of(eqn.source_info)
    return [
        Unmet(shape, dim, axes_of(entry), source)
        for dim, (size, entry) in enumerate(zip(shape, spec, strict=True))
        if size % _ways(layout, entry)
    ]
