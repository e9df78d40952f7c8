"""Seconds of a collective, by its kind, its bytes and where the members of its groups are.

Within a node times are XLA's measured ones, for groups of that size. Between nodes all groups run
at once, and a group with m members in a node uses m of its adapters: what a device moves goes at
the lower of the two rates, after the latency of the hops around the ring (NCCL's own model of its
rings and trees, src/graph/tuning.cc).
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import ceil, log2

from jaxpar.costs.rates import Device
from jaxpar.hardware import measured
from jaxpar.hlo.collectives import Collective

HOP_SECONDS = 3.4e-6
"""From one device to the next over NVLink, by NCCL's constants."""

FLOOR_SECONDS = 8.4e-6
"""Of any collective by rings, by NCCL's constants."""

PERMUTE = "collective-permute"

LIKE = {"ragged-all-to-all": "all-to-all", "collective-broadcast": "all-gather"}
"""Kinds without a table of their own, and what is taken for them."""


def collective_seconds(one: Collective, device: Device) -> float:
    """How long one execution takes, from when all members have come to it."""
    kind = LIKE.get(one.kind, one.kind)
    node = device.hardware.devices_per_node or 1
    if one.pairs:
        return _permute_seconds(one, device, node)
    size, nodes, fewest = _members(one.groups, node)
    if nodes == 1:
        return _inside_seconds(kind, one.bytes_each, size, device)
    return _across_seconds(kind, one.bytes_each, size, nodes, fewest, device)


def sent_share(kind: str, size: int) -> float:
    """The share of its payload that each member of a ring of that size sends.

    >>> sent_share("all-gather", 4), sent_share("all-reduce", 4)
    (0.75, 1.5)
    """
    return (size - 1) / size * (2 if kind == "all-reduce" else 1)


@lru_cache(maxsize=256)
def _members(groups: tuple[tuple[int, ...], ...], node: int) -> tuple[int, int, int]:
    """(members of a group, nodes that a group is in at most, fewest members in any of them)."""
    counts = [Counter(member // node for member in group) for group in groups]
    return max(map(len, groups)), max(map(len, counts)), min(min(one.values()) for one in counts)


def _inside_seconds(kind: str, size_bytes: float, size: int, device: Device) -> float:
    """Of a collective whose group is in one node."""
    near, times = _measured(kind, size, device)
    # Between the sizes of groups that were measured the larger's time per byte sent stands.
    share = sent_share(kind, size) / sent_share(kind, near)
    return _scaled(times, size_bytes, share * device.slower_links(kind))


def _measured(kind: str, size: int, device: Device) -> tuple[int, measured.Times]:
    """(size of the group, its times) that were measured nearest to a group of this size."""
    tables = measured.collectives(device.reached.tables)
    sizes = sorted(n for k, n in tables if k == kind)
    near = next((n for n in sizes if n >= size), sizes[-1])
    return near, tables[kind, near]


def _scaled(times: measured.Times, size_bytes: float, factor: float) -> float:
    """Measured seconds, what they have above their floor times a factor."""
    floor = min(times.seconds)
    return floor + (times.at(size_bytes) - floor) * factor


def _across_seconds(
    kind: str, size_bytes: float, size: int, nodes: int, here: int, device: Device
) -> float:
    """Of a collective between nodes, with `here` members of a group in the node with fewest."""
    reached, rates = device.reached, device.rates
    share = reached.network.get(kind, min(reached.network.values()))
    network = share * rates.network_bytes_per_second * here
    if kind == "all-to-all":
        away = size_bytes * (size - here) / size
        inside = _inside_seconds(kind, size_bytes * here / size, here, device) if here > 1 else 0.0
        alone = share * rates.network_bytes_per_second
        return FLOOR_SECONDS + reached.network_seconds * nodes + max(away / alone, inside)
    rate = min(network, _ring_rate(kind, here, device))
    ring = sent_share(kind, size) * size_bytes / rate
    around = (nodes - 1) * reached.network_seconds + (size - nodes) * HOP_SECONDS
    if kind != "all-reduce":
        return FLOOR_SECONDS + around + ring
    # Sums of small arrays go by trees, whose depth grows with the logarithm of nodes.
    tree = 2 * (ceil(log2(nodes)) * reached.network_seconds + (here - 1) * HOP_SECONDS)
    return FLOOR_SECONDS + min(2 * around + ring, tree + ring)


def _ring_rate(kind: str, here: int, device: Device) -> float:
    """Bytes a second that a device sends around a ring, as far as that is within a node."""
    near, times = _measured(kind, max(2, here), device)
    top = times.bytes[-1] * sent_share(kind, near) / times.seconds[-1]
    return top / device.slower_links(kind)


def _permute_seconds(one: Collective, device: Device, node: int) -> float:
    """Of a permute: each device sends to one other, some of them to another node."""
    reached, rates = device.reached, device.rates
    crosses = any(a // node != b // node for a, b in one.pairs)
    if not crosses:
        times = measured.collectives(reached.tables)[PERMUTE, 0]
        return _scaled(times, one.bytes_each, device.slower_links(PERMUTE))
    share = reached.network[PERMUTE]
    return (
        FLOOR_SECONDS
        + reached.network_seconds
        + one.bytes_each / (share * rates.network_bytes_per_second)
    )
