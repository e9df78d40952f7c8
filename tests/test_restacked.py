"""Stacks in the order of stages: what an index gives, and no device creates others' layers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import cpu, small_model

from jaxpar.case import load_strategy
from jaxpar.core.mesh import MeshShape
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.lint import lint
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from jaxpar.step.restacked import rounds


@settings(deadline=None)  # the first rounds import scipy's matching
@given(st.integers(1, 8), st.integers(1, 6), st.randoms(use_true_random=False))
def test_in_every_round_each_device_sends_one_block_and_gets_one(devices, each, random):
    """Whatever the order; and in the end every place has its block."""
    order = list(range(devices * each))
    random.shuffle(order)
    plan, placed = rounds(order, devices), {}
    assert len(plan) == each
    for one in plan:
        assert sorted(source for source, _, _ in one) == list(range(devices))
        for device, (source, block, place) in enumerate(one):
            placed[device * each + place] = source * each + block
    assert [placed[place] for place in range(devices * each)] == order


@pytest.mark.parametrize(("mesh", "chunks", "layers"), [("pipe=2", 4, 8), ("pipe=3,data=2", 2, 12)])
def test_layers_are_stored_as_their_order_says(mesh, chunks, layers):
    """The same draws as in the network's own order, each at its place."""
    found = created("interleaved", mesh, chunks, layers)
    plain = created("gpipe", mesh, 0, layers)
    state, drawn = found.init(3), plain.init(3)
    for path, value in state.parameters.items():
        order, own = found.step.layout.order_of(path), np.asarray(drawn.parameters[path])
        assert (order is None) == (not path.startswith("blocks/"))
        placed = own if order is None else own[list(order)]
        np.testing.assert_allclose(value, placed, rtol=1e-5)  # XLA may round a draw otherwise


def test_a_pipeline_with_the_defaults_of_its_schedule_passes_its_lint():
    """Creating its state takes no more of a device with more stages, in the order of chunks too."""
    peaks = []
    for stages in (2, 4):
        found = created("interleaved", f"pipe={stages}", 0, 2 * stages, width=256, ffn=1024)
        assert lint(found) == ()
        peaks.append(found.init_memory.temp_size_in_bytes)
    assert peaks[1] <= 1.1 * peaks[0]


def created(schedule, mesh, chunks, layers, **fields):
    """A small decoder's program under a pipeline of that schedule."""
    layout = lay_out(
        small_model("transformer", layers=layers, **fields).with_batch_size(24),
        strategy=load_strategy("data+pipeline", schedule=schedule, chunks=chunks),
        mesh=MeshShape.parse(mesh),
    )
    return compile_step(
        make_step(layout, microbatches=2 * layout.mesh.size("pipe")),
        hardware=cpu(),
        for_speed=False,
    )
