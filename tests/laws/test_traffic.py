"""A strategy's collectives are those it states, per axis, on CPU programs and a described H100's.

The byte counts are worked out by hand from shapes; only the program is the compiler's.
"""

from functools import cache, partial
from itertools import product

import jax
import pytest
from small import (
    DECODER,
    MODES,
    assert_as_stated,
    crossed,
    kinds_of_model,
    mesh_for,
    needs_gpu_compiler,
    small_layout,
    small_model,
)

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.mesh import axes_of
from jaxpar.measures.inspect import inspect
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

BOTH = "data=4,model=2"
FLOAT = 4


def on_h100(*more):
    """A case on a described H100."""
    return pytest.param("h100", *more, marks=needs_gpu_compiler)


def on_hardware(cases):
    """Each case (model, strategy, ...) on simulated devices, the decoder's on described H100s too.

    What differs between the two is how XLA spells collectives, whatever the model.
    """
    cases = list(cases)
    return [("cpu", *c) for c in cases] + [on_h100(*c) for c in cases if c[0] == DECODER]


def on_both(strategies, *more):
    """Each strategy, with each of the tuples `more`, on simulated devices and described H100s."""
    cases = list(product(strategies, *more))
    return [("cpu", *c) for c in cases] + [on_h100(*c) for c in cases]


def inspected(model, strategy, *, hardware="cpu", mesh=BOTH, mode="auto", microbatches=1, **fields):
    """What the small model's compiled step holds and communicates; each is compiled once."""
    config = small_model(model).config
    changes = [(name, x) for name, x in fields.items() if getattr(config, name) != x]
    return _inspected(model, strategy, hardware, mesh, mode, microbatches, tuple(changes))


@cache
def _inspected(model, strategy, hardware, mesh, mode, microbatches, fields):
    layout = small_layout(model, strategy, mesh, **dict(fields))
    step = make_step(layout, mode=mode, microbatches=microbatches)
    return inspect(compile_step(step, hardware=HARDWARE.load(hardware)(), for_speed=False))


def bytes_in(inspection, kind: str | None = None, axis: str | None = None) -> int:
    """Bytes put into collectives of `kind` (any) that cross `axis` (any)."""
    rows = inspection.collectives
    assert all(row.exact and row.whole for row in rows), rows
    return sum(
        row.bytes for row in rows if kind in (None, row.kind) and (axis is None or axis in row.axes)
    )


def pieces(inspection, *, sharded: bool | None = None, layers_twice: bool = False) -> int:
    """Bytes of parameters as a device uses them; of those stored sharded, or of the others."""
    layout = inspection.layout
    total = 0
    for a in layout.parameters.values():
        if sharded in (None, a.stored != a.used):
            ways = 1
            for entry in a.used:
                for axis in axes_of(entry):
                    ways *= layout.mesh.size(axis)
            twice = layers_twice and a.dims[0] == "layers"
            total += a.whole_bytes // ways * (2 if twice else 1)
    return total


def scalars(inspection) -> int:
    """Bytes of the loss and the metrics: each a total and a weight, summed over the batch too."""
    step = make_step(inspection.layout)
    metrics = jax.eval_shape(step.update, step.state, step.batch)[1]
    return 2 * FLOAT * len(metrics)


def statistics_bytes(inspection) -> tuple[int, int]:
    """Least and most bytes of batch statistics: mean and square forward, as many again backward."""
    state = sum(a.device_bytes(inspection.layout.mesh) for a in inspection.layout.state.values())
    return state, 2 * state


@pytest.mark.parametrize(
    ("hardware", "strategy", "mode"),
    [on_h100(s, mode) for model, s, mode in crossed() if model == DECODER],
)
def test_a_strategys_collectives_on_gpus_are_those_it_states(hardware, strategy, mode):
    """On simulated devices `test_numbers` holds this, of the programs whose numbers it compares."""
    mesh = mesh_for(strategy)
    found = inspected(DECODER, strategy, hardware=hardware, mesh=mesh, mode=mode)
    assert_as_stated(found.layout, found.collectives + found.averaging, mode)


@pytest.mark.parametrize(
    ("hardware", "model", "strategy", "mode"),
    on_hardware(case for case in crossed() if case[1] in ("data", "hybrid")),
)
def test_data_parallelism_all_reduces_the_parameters_bytes(hardware, model, strategy, mode):
    """Over data: every gradient once, as large as the weight is on a device, and scalars.

    A model with BatchNorm also sums its statistics, to take them over the whole batch.
    """
    inspection = inspected(model, strategy, hardware=hardware, mode=mode)
    more = bytes_in(inspection, "all-reduce", "data") - pieces(inspection)
    least, most = statistics_bytes(inspection)
    assert least < more <= most + scalars(inspection)
    assert bytes_in(inspection, axis="data") == bytes_in(inspection, "all-reduce", "data")


@pytest.mark.parametrize(
    ("hardware", "strategy", "mode"), on_both(["tensor", "hybrid", "fsdp+tensor"], MODES)
)
def test_tensor_parallelism_sums_activations_and_nothing_else(hardware, strategy, mode):
    """Over model, of a decoder with L layers: 4 L + 2 sums of (batch, sequence, width).

    Two a layer forward (after attention, after the feed-forward part) and two backward (before
    each). One for the embedding, whose rows are on different devices, and one backward before the
    head. And five of (batch, sequence) for a split vocabulary: in the loss the largest logit, the
    sum of exponentials and the label's logit; in the accuracy the label's logit and the largest,
    which manual mode has at hand from the loss.
    Counted in bytes, since XLA joins sums; nothing of a parameter's size is left over. Before
    attention stand two products, of queries with keys and of values: XLA for GPUs adds their
    gradients before it sums them over devices, XLA for CPUs sums each.
    """
    inspection = inspected("transformer", strategy, hardware=hardware, mode=mode)
    config, mesh = inspection.layout.model.config, inspection.layout.mesh
    rows = inspection.layout.model.batch_size // (mesh.size("data") if strategy != "tensor" else 1)
    positions = rows * config.sequence * FLOAT
    each = 5 if (hardware, mode) == ("cpu", "auto") else 4
    expected = (each * config.layers + 2) * positions * config.width
    expected += {"auto": 5, "manual": 4}[mode] * positions
    assert bytes_in(inspection, "all-reduce", "model") == expected
    assert bytes_in(inspection, axis="model") == expected


@pytest.mark.parametrize(
    ("hardware", "model", "strategy"),
    on_hardware([*product(kinds_of_model(), ["fsdp"]), (DECODER, "fsdp+tensor")]),
)
def test_fsdp_gathers_layers_twice_and_scatters_gradients_once(hardware, model, strategy):
    """Over data: weights of stacked layers gathered forward and backward, others once.

    Gradients are scattered once; what is stored whole is all-reduced. XLA for CPUs spells a scatter
    as an all-reduce of the whole and a slice.
    """
    inspection = inspected(model, strategy, hardware=hardware)
    sharded, whole = pieces(inspection, sharded=True), pieces(inspection, sharded=False)
    assert sharded > 0
    assert bytes_in(inspection, "all-gather", "data") == pieces(
        inspection, sharded=True, layers_twice=True
    )
    scattered = bytes_in(inspection, "reduce-scatter", "data")
    assert scattered == (0 if hardware == "cpu" else sharded)
    least, most = statistics_bytes(inspection)
    more = (
        bytes_in(inspection, "all-reduce", "data") - whole - (sharded if hardware == "cpu" else 0)
    )
    assert least < more <= most + scalars(inspection)


@pytest.mark.parametrize("hardware", ["cpu", on_h100()])
def test_collectives_in_a_loop_count_as_often_as_it_runs(hardware):
    """Twelve layers gather twelve times, through a loop of two layers that runs six times.

    XLA unrolls a loop that runs up to five times, so that fewer would not show one counted once.
    """
    layout = small_layout("transformer", "fsdp", BOTH, layers=12, unroll=2)
    program = compile_step(make_step(layout), hardware=HARDWARE.load(hardware)(), for_speed=False)
    assert " while(" in program.text, "unrolled wholly: take more layers"
    inspection = inspect(program)
    assert bytes_in(inspection, "all-gather", "data") == pieces(
        inspection, sharded=True, layers_twice=True
    )


@pytest.mark.parametrize("mesh", ["data=8", "model=8", "data=1"])
def test_no_collective_runs_over_an_axis_of_one_device(mesh):
    """On a mesh of one axis a strategy for two has collectives over that axis alone."""
    inspection = inspected("mlp", "fsdp+tensor", mesh=mesh)
    large = {axis for axis, size in inspection.layout.mesh.sizes if size > 1}
    assert {axis for row in inspection.collectives for axis in row.axes} == large
    assert inspection.ok


def test_inspecting_allocates_no_array():
    """A model too large for any machine here is laid out, compiled and read."""
    before = len(jax.live_arrays())
    inspection = inspected("mlp", "hybrid", width=1 << 17)
    assert len(jax.live_arrays()) == before
    assert inspection.layout.parameter_bytes > 1e11
    assert inspection.ok


@pytest.mark.parametrize(("mode", "sums"), [("auto", 1), ("manual", 1), ("explicit", 2)])
def test_accumulated_gradients_are_summed_over_data_once(mode, sums):
    """Two microbatches all-reduce the parameters' bytes once, as one; but for explicit mode."""
    found = inspected("mlp", "data", mesh="data=8", mode=mode, microbatches=2)
    assert 0 <= bytes_in(found, "all-reduce") - sums * pieces(found) <= 2 * scalars(found)
    assert found.ok


def test_a_weight_with_a_derivative_of_its_own_is_summed_once_too():
    """The head, whose cotangent is narrow: each device keeps its part of the sum over rows."""
    found = inspected(
        "transformer",
        "data",
        mesh="data=8",
        mode="manual",
        microbatches=2,
        compute_dtype="bfloat16",
    )
    assert 0 <= bytes_in(found, "all-reduce") - pieces(found) <= 2 * scalars(found)


def test_microbatches_that_draw_are_summed_as_they_come_by_xla_and_once_by_hand():
    """A share of the rows would draw other numbers than the whole microbatch does."""
    make = partial(inspected, "transformer", "data", mesh="data=8", microbatches=2, dropout=0.1)
    for mode, sums in (("auto", 2), ("manual", 1)):
        found = make(mode=mode)
        assert 0 <= bytes_in(found, "all-reduce") - sums * pieces(found) <= 2 * scalars(found)
