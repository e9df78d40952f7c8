"""Bounds: how long a step takes at least, from its work, its collectives and published rates.

Products at the peak rate of their dtype; collectives at the full rate of their links, as few bytes
as any algorithm moves. A real step takes longer: neither rate is reached, and all that is no
product and no collective takes time too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxpar.hardware.record import Hardware, Rates
from jaxpar.measures.traffic import TrafficRow
from jaxpar.measures.work import Work


@dataclass(frozen=True)
class Bounds:
    """Least seconds of one step, of a device.

    Attributes:
        compute_seconds: of its products, recomputation left out.
        recomputation_seconds: of what it computes again.
        link_seconds: of its collectives on the links within its node.
        network_seconds: of those between nodes, every adapter of the node at work.
    """

    compute_seconds: float
    recomputation_seconds: float
    link_seconds: float
    network_seconds: float

    @property
    def step_seconds(self) -> float:
        """Of a step: work and the two kinds of links can all be busy at once."""
        compute = self.compute_seconds + self.recomputation_seconds
        return max(compute, self.link_seconds, self.network_seconds)

    def record(self) -> dict[str, Any]:
        """The bounds as one JSON-ready dict."""
        return {**asdict(self), "step_seconds": self.step_seconds}


def bounds(
    work: Work, rows: Iterable[tuple[TrafficRow, float]], hardware: Hardware
) -> Bounds | None:
    """The bounds of a step; None for hardware of which no rates are published.

    Args:
        work: of the step.
        rows: its collectives, each with how many of them a step has, 1 but for those of a
            synchronisation.
        hardware: what it was compiled for.
    """
    rates, node = hardware.rates, hardware.devices_per_node
    if rates is None or node is None:
        return None
    rows = tuple(rows)
    link_bytes = sum(times * row.link_bytes for row, times in rows)
    node_bytes = sum(times * row.node_bytes for row, times in rows)
    return Bounds(
        compute_seconds=_seconds(work.computed_flops, work.sharing, rates),
        recomputation_seconds=_seconds(work.recomputed_flops, work.sharing, rates),
        link_seconds=link_bytes / rates.link_bytes_per_second,
        network_seconds=node_bytes / (node * rates.network_bytes_per_second),
    )


def _seconds(flops: Mapping[str, int], devices: int, rates: Rates) -> float:
    """How long products of each dtype take on a device, which does its share of them."""
    fastest = max(rates.flops_per_second.values())
    return sum(n / devices / rates.flops_per_second.get(d, fastest) for d, n in flops.items())
