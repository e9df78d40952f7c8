"""Faults: collectives that a strategy states it never causes, and those that are missing.

A strategy's tables `must` and `never` are held against the collectives of a compiled program. What
the optimizer's own operations ask for is no strategy's doing, and neither is it a fault.
"""

from jaxpar.core.mesh import axes_of
from jaxpar.layout.record import Layout
from jaxpar.measures.purpose import ACTIVATIONS
from jaxpar.measures.traffic import TrafficRow
from jaxpar.strategies.record import (
    ALL_GATHER,
    ALL_REDUCE,
    ALL_TO_ALL,
    GATHER_ACTIVATIONS,
    GATHER_WEIGHTS,
    PERMUTE,
    REPLICA,
)


def traffic_faults(
    layout: Layout, rows: tuple[TrafficRow, ...], mode: str = "auto"
) -> tuple[str, ...]:
    """Collectives in `rows` that the strategy never causes, and those it must; a sentence each.

    `mode` is that of the step.
    """
    strategy, mesh = layout.strategy, layout.mesh
    faults = []
    for axis in mesh.axes:
        if mesh.size(axis) == 1:
            continue
        here = [row for row in rows if axis in row.axes]
        found = {kind for row in here for kind in (row.kind, *row.kinds)}
        never = _gathers_spelled_out(strategy.never.get(axis, frozenset()))
        for row in here:
            if row.kinds and row.kinds <= never:
                where = f", from {row.sources[0]}" if row.sources else ""
                faults.append(
                    f"unexpected collective: strategy '{strategy.name}' never causes {row.title} "
                    f"over axis '{axis}', and the program does {row.count} per step, "
                    f"{row.bytes:,} bytes per device{where}: {_why(layout, axis, row, mode)}"
                )
        for kind in sorted(strategy.must.get(axis, ())):
            if kind not in found and _uses(layout, axis, kind):
                faults.append(
                    f"missing collective: strategy '{strategy.name}' must cause {kind} over axis "
                    f"'{axis}', and the program does none: the arrays it should move are not "
                    "sharded over that axis"
                )
    return tuple(faults)


def _why(layout: Layout, axis: str, row: TrafficRow, mode: str) -> str:
    """What causes an unexpected collective over an axis, for a sentence."""
    mixing = (
        ", or the loss takes rows of the whole batch together there"
        if layout.model.named and axis in layout.row_axes
        else ""
    )
    if row.purpose == ACTIVATIONS:
        other = "" if mode == "manual" else " (--mode manual does so with more operations)"
        return (
            "every device gets the whole of an activation, because the operation there is not done "
            f"a shard at a time{other}{mixing}"
        )
    return f"an array is not sharded as its use needs it{mixing}"


def early_synchronisations(layout: Layout, rows: tuple[TrafficRow, ...]) -> tuple[str, ...]:
    """Collectives of an update over the axis of replicas that only synchronise now and then."""
    if layout.strategy.averaging is None:
        return ()
    return tuple(
        f"unexpected collective: strategy '{layout.strategy.name}' has none over axis '{REPLICA}' "
        f"until replicas synchronise, and an update does {row.count} {row.kind} per step, "
        f"{row.bytes:,} bytes per device: something of one replica is used by another"
        for row in rows
        if REPLICA in row.axes
    )


def _gathers_spelled_out(kinds: frozenset[str]) -> frozenset[str]:
    """The same kinds, a gather of anything as one of weights and one of activations."""
    both = {GATHER_WEIGHTS, GATHER_ACTIVATIONS} if ALL_GATHER in kinds else set()
    return kinds | both


def _uses(layout: Layout, axis: str, kind: str) -> bool:
    """Whether anything of this model is sharded over `axis`, so that `kind` can be expected."""
    between = {axis for axes in layout.strategy.between.values() for axis in axes}
    specs = [a.stored for a in layout.parameters.values()]
    if kind == GATHER_ACTIVATIONS and axis in between:
        return True
    if kind in (ALL_REDUCE, ALL_TO_ALL, PERMUTE):
        specs += list(layout.batch.values())
    if kind in (ALL_GATHER, GATHER_WEIGHTS):
        specs = [
            a.optimizer_state for a in layout.parameters.values() if a.optimizer_state != a.used
        ]
    return any(axis in axes_of(entry) for spec in specs for entry in spec)
