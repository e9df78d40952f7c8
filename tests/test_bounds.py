"""Bounds: the fewest bytes on links, by hand, and the times that follow from published rates."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpar.core.catalogue import HARDWARE
from jaxpar.hardware.h100 import hardware as h100
from jaxpar.hlo.collectives import Collective
from jaxpar.measures.bounds import bounds
from jaxpar.measures.links import moved
from jaxpar.measures.traffic import TrafficRow
from jaxpar.measures.work import Work

NODE, BYTES = 4, 1600


def collective(kind, groups=(), pairs=()):
    return Collective(
        name="c", kind=kind, groups=groups, pairs=pairs, bytes_each=BYTES, executions=1, exact=True,
        is_async=False, op_name="", frames=(), borrowed=False, operands=(), computation="main",
    )  # fmt: skip


WITHIN = ((0, 1, 2, 3), (4, 5, 6, 7))
ACROSS = ((0, 4), (1, 5), (2, 6), (3, 7))
ALL = (tuple(range(8)),)


@pytest.mark.parametrize(
    ("kind", "groups", "device", "node"),
    [
        # A device has a quarter of what is gathered, or keeps a quarter of what is scattered.
        ("all-gather", WITHIN, 0.75, 0),
        ("reduce-scatter", WITHIN, 0.75, 0),
        ("all-to-all", WITHIN, 0.75, 0),
        # Every device hands over its whole array, once at least.
        ("all-reduce", WITHIN, 1, 0),
        # Pairs across two nodes: four of them, each node has half of every array.
        ("all-gather", ACROSS, 0, 4 * 0.5),
        ("all-to-all", ACROSS, 0, 4 * 0.5),
        ("all-reduce", ACROSS, 0, 4 * 1),
        # One group over two nodes: of eight shares three are beside, and four in the other node.
        ("all-gather", ALL, 3 / 8, 0.5),
        ("reduce-scatter", ALL, 3 / 8, 0.5),
        ("all-to-all", ALL, 3 / 8, 4 * 0.5),
        ("all-reduce", ALL, 0.75, 1),
        ("ragged-all-to-all", ALL, 0, 0),
    ],
)
def test_no_algorithm_moves_fewer_bytes(kind, groups, device, node):
    """Shares of the payload, a device within its node and a node to others."""
    found = moved(collective(kind, groups), NODE)
    assert found.device_bytes == device * BYTES
    assert found.node_bytes == node * BYTES
    assert found.between_nodes == (groups != WITHIN)


def test_a_permute_moves_all_of_it_within_a_node_or_between_two():
    """A ring of eight in nodes of four: one pair leaves each node, three stay in it."""
    ring = tuple((i, (i + 1) % 8) for i in range(8))
    found = moved(collective("collective-permute", pairs=ring), NODE)
    assert (found.device_bytes, found.node_bytes, found.between_nodes) == (BYTES, BYTES, True)
    inside = tuple((i, i ^ 1) for i in range(8))
    found = moved(collective("collective-permute", pairs=inside), NODE)
    assert (found.device_bytes, found.node_bytes, found.between_nodes) == (BYTES, 0, False)


WORK = Work(
    {"bfloat16": 9 * 10**15}, {"bfloat16": 8 * 10**15}, {"bfloat16": 4 * 10**15}, 8, 64, 0, True
)
ROW = TrafficRow("all-gather", ("data",), True, 1, 9 * 10**9, True, (), link_bytes=9e9)


def of(work=WORK, hardware=None, **changes):
    found = bounds(work, [(replace(ROW, **changes), 1.0)], hardware or h100())
    assert found is not None
    return found


def test_bounds_follow_from_the_published_rates():
    """A petaflop at 989.4 TFLOP/s, nine gigabytes at 450 GB/s, a node's 40 at 8 x 50 GB/s."""
    found = of(node_bytes=40e9)
    assert found.compute_seconds == pytest.approx(1e15 / 989.4e12)
    assert found.recomputation_seconds == pytest.approx(0.5e15 / 989.4e12)
    assert (found.link_seconds, found.network_seconds) == (0.02, 0.1)
    assert found.step_seconds == found.compute_seconds + found.recomputation_seconds
    assert of(WORK, node_bytes=4e12).step_seconds == 10
    assert bounds(WORK, [], HARDWARE.load("cpu")()) is None


@given(st.sampled_from(["flops", "link", "network"]), st.floats(1, 100))
def test_higher_rates_are_never_bound_slower(which, times):
    """And half the devices, or twice the bytes, never faster."""
    rates = h100().rates
    assert rates is not None
    faster = {
        "flops": {"flops_per_second": {d: times * r for d, r in rates.flops_per_second.items()}},
        "link": {"link_bytes_per_second": times * rates.link_bytes_per_second},
        "network": {"network_bytes_per_second": times * rates.network_bytes_per_second},
    }
    quick = replace(h100(), rates=replace(rates, **faster[which]))
    assert of(hardware=quick, node_bytes=1e12).step_seconds <= of(node_bytes=1e12).step_seconds
    assert of(replace(WORK, sharing=4)).step_seconds >= of().step_seconds
    assert of(link_bytes=times * 9e9).step_seconds >= of().step_seconds


def test_every_described_hardware_says_where_its_rates_are_published():
    """No figure without a source."""
    for name in HARDWARE.names():
        rates = HARDWARE.load(name)().rates
        assert rates is None or "NVIDIA" in rates.source
