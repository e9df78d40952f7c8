"""Links: the fewest bytes that a collective moves over the links in a node and between nodes.

No algorithm moves fewer, reduction in the network included, so that the time that follows from a
link's rate is a lower bound. Devices of a node have consecutive numbers in a mesh, row-major.
"""

from collections import Counter
from dataclasses import dataclass

from jaxpar.hlo.collectives import Collective


@dataclass(frozen=True)
class Moved:
    """Bytes of one execution of a collective, one way.

    Attributes:
        between_nodes: whether devices of several nodes take part.
        device_bytes: to or from the others of its node, of the device with most.
        node_bytes: to or from other nodes, of the node with most.
    """

    between_nodes: bool
    device_bytes: float
    node_bytes: float


def moved(one: Collective, devices_per_node: int) -> Moved:
    """What a collective moves at least, where each node has so many devices."""
    if one.pairs:
        return _permuted(one, devices_per_node)
    device: float = 0.0
    across: dict[int, float] = {}
    for group in one.groups:
        nodes = Counter(member // devices_per_node for member in group)
        for node, here in nodes.items():
            inside, outside = _shares(one.kind, len(group), here)
            device = max(device, inside * one.bytes_each)
            if len(nodes) > 1:
                across[node] = across.get(node, 0.0) + outside * one.bytes_each
    most = max(across.values(), default=0.0)
    return Moved(between_nodes=bool(across), device_bytes=device, node_bytes=most)


def _shares(kind: str, size: int, here: int) -> tuple[float, float]:
    """The least shares of a payload that (a device in its node, a node) moves.

    Args:
        kind: of the collective.
        size: devices of its group.
        here: how many of them are in the node.
    """
    away = (size - here) / size
    beside = (here - 1) / size
    if kind == "all-reduce":
        # Whoever sums, every device has to hand its whole array over, some of it to the network.
        inside = float(here > 1) if here == size else (here - 1) / here
        return inside, float(away > 0)
    if kind == "all-to-all":
        return beside, here * away
    if kind in ("all-gather", "reduce-scatter"):
        return beside, away
    # A ragged all-to-all says only the most that it may move, a broadcast not who has the array.
    return 0.0, 0.0


def _permuted(one: Collective, devices_per_node: int) -> Moved:
    """What a permute moves: all of it, within a node or between two."""
    ends = [(a // devices_per_node, b // devices_per_node) for a, b in one.pairs if a != b]
    crossing = [(a, b) for a, b in ends if a != b]
    sent, got = Counter(a for a, _ in crossing), Counter(b for _, b in crossing)
    most = max((*sent.values(), *got.values()), default=0)
    return Moved(
        between_nodes=bool(crossing),
        device_bytes=float(one.bytes_each if len(crossing) < len(ends) else 0),
        node_bytes=float(most * one.bytes_each),
    )
