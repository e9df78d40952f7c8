"""Programs as JAX 0.10, 0.11 and 0.12 compiled them, for CPUs and described H100s, read again.

Each file in `saved` has the small mlp under fsdp+tensor on data=4,model=2: the module right after
partitioning, the finished one, XLA's buffer assignment and live ranges, and its own peak.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from small import small_layout

from jaxpar.hlo.buffers import buffers
from jaxpar.hlo.collectives import axes_of, collectives
from jaxpar.hlo.flow import Flow
from jaxpar.hlo.occupancy import occupancy
from jaxpar.hlo.parse import parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.hlo.parts import parts_of
from jaxpar.hlo.schedule import between
from jaxpar.measures.explain.places import Places
from jaxpar.step.make_step import make_step

MESH = {"data": 4, "model": 2}
FILES = sorted((Path(__file__).parent / "saved").glob("*.json.gz"))


@pytest.fixture(params=FILES, ids=lambda file: file.name.removesuffix(".json.gz"))
def saved(request):
    """What one file holds."""
    return json.loads(gzip.decompress(request.param.read_bytes()))


def test_there_are_programs_of_each_version():
    """Three versions of JAX, two targets each."""
    assert len(FILES) == 6


def test_every_reduction_is_of_partial_results_and_none_is_at_fault(saved):
    """What each all-reduce is given is known: partial along its axes, or a shard to be gathered."""
    module = parse(saved["partitioned"])
    layout = small_layout("mlp", "fsdp+tensor", "data=4,model=2")
    sums = Sums(module, MESH, Places(make_step(layout)).dims)
    assert sums.faults == ()
    for one in collectives(module):
        axes = set(axes_of(one, MESH))
        for number in range(len(one.operands)):
            value = sums.operand(one, number)
            assert value is not None
            if one.kind in ("all-reduce", "reduce-scatter"):
                assert axes <= {partial.axis for partial in value.partial}
            if one.kind == "all-gather":
                assert axes <= value.sharded


def test_parts_are_all_of_a_collective_and_are_those_of_the_partitioned_module(saved):
    """Combining moves no byte: by kind of payload the finished program has what was asked for."""
    flow = Flow(parse(saved["finished"]))
    pieces = Counter()
    for one in collectives(flow.module):
        parts = parts_of(flow, one)
        assert sum(part.bytes_each for part in parts) == one.bytes_each
        assert all(part.names for part in parts)
        assert one.is_async or not between(flow, one)
        pieces[axes_of(one, MESH)] += len(parts)
    asked = Flow(parse(saved["partitioned"]))
    wanted = Counter()
    for one in collectives(asked.module):
        wanted[axes_of(one, MESH)] += len(parts_of(asked, one))
    assert set(pieces) == set(wanted)
    assert all(0 < pieces[axes] <= wanted[axes] for axes in wanted)


def test_the_peak_of_memory_is_xlas_own(saved, request):
    """For described GPUs; XLA's figure for CPUs has only what is allocated throughout."""
    found = buffers(saved["buffers"], saved["live_ranges"])
    taken = occupancy(found, 1, lambda one: 0)
    own = taken.peak[1] if "h100" in request.node.name else taken.throughout
    assert abs(own - saved["peak_bytes"]) <= 0.001 * saved["peak_bytes"]
