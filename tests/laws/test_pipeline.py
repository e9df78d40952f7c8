"""Laws of pipelines: one device's numbers in any order of work, and what is sent, kept and idle."""

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import pytest
from small import cpu, needs_gpu_compiler, small_layout, small_model, small_strategy
from test_traffic import on_h100

from jaxpar.case import load_strategy
from jaxpar.core.catalogue import HARDWARE, SCHEDULES
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape
from jaxpar.hlo.executions import executions
from jaxpar.hlo.parse import bytes_of, parse
from jaxpar.inference.probe import probe_batch
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.stages import schedule_for
from jaxpar.measures.inspect import inspect
from jaxpar.measures.traffic import traffic
from jaxpar.measures.verify.verify import verify
from jaxpar.program.quick import QUICK
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from jaxpar.step.pipeline import Gathering, staged, take_apart
from jaxpar.step.pipeline.timetable import timetable

pytestmark = pytest.mark.usefixtures("drawn_once")

FLOAT = 4


def in_stages(
    strategy: str, mesh: str, *, batch: int = 16, model="transformer", fields=(), **options
):
    """The layout of a small decoder of four layers; `options` are the strategy's."""
    return lay_out(
        small_model(model, **{"layers": 4, **dict(fields)}).with_batch_size(batch),
        strategy=small_strategy(strategy, **options),
        mesh=MeshShape.parse(mesh),
    )


def prove(layout, microbatches: int):
    verdict = verify(layout, hardware=cpu(), make=partial(make_step, microbatches=microbatches))
    assert verdict.ok, f"{verdict.decisive}: {verdict.likely_mistake}"
    assert verdict.dtype == "float64"
    assert verdict.decisive.error <= 1e-12
    assert verdict.program is not None
    return verdict.program


@pytest.mark.parametrize(
    ("schedule", "microbatches"),
    [(name, 8 if name == "one_f_one_b" else 4) for name in SCHEDULES.names()],
)
def test_every_schedule_computes_what_one_device_does(schedule, microbatches):
    """Whatever the order of work, the step is gradient accumulation on one device.

    What that program sends is what `test_neighbours_pass_on...` asks of one for a described H100.
    """
    layers = 8 if schedule == "interleaved" else 4
    fields = {"layers": layers}.items()
    program = prove(in_stages("pipeline", "pipe=4", fields=fields, schedule=schedule), microbatches)
    layout = program.step.layout
    rows = traffic(program.probe.as_text(), dict(layout.mesh.sizes))
    assert_passed_on(layout, microbatches, rows, itemsize=2 * FLOAT)


PRODUCTS = {
    "fsdp+tensor+pipeline": "pipe=2,data=2,model=2",
    "zero2+pipeline": "pipe=4,data=2",
    "replica+fsdp+pipeline": "replica=2,pipe=2,data=4",
    "expert+data+pipeline": "pipe=2,data=2,model=2",
    "sequence+pipeline": "pipe=2,model=4",
    "data+context+pipeline": "pipe=2,data=2,model=2",
}


@pytest.mark.parametrize(("strategy", "mesh"), PRODUCTS.items())
def test_pipelines_join_with_every_way_to_shard_a_stage(strategy, mesh):
    """Inside a stage the other axes work as they do without stages, on 8 and 16 devices."""
    model = "moe" if "expert" in strategy else "transformer"
    options: dict[str, Any] = {"exchange": "ulysses"} if "context" in strategy else {}
    microbatches = 4 if "replica" not in strategy else 2
    program = prove(in_stages(strategy, mesh, model=model, **options), microbatches)
    if "tensor" in strategy:
        layout = program.step.layout
        rows = traffic(program.probe.as_text(), dict(layout.mesh.sizes))
        assert_summed_in_stages(layout, rows, itemsize=2 * FLOAT)


@pytest.mark.parametrize("gather", ["step", "microbatch"])
def test_weights_are_gathered_as_often_as_was_asked_for(gather):
    """Once a step: every weight of a stage gathered once, and its gradient scattered once."""
    layout = in_stages("fsdp+pipeline", "pipe=2,data=2", gather=gather)
    assert any(
        f"gather={'step' if gather == 'microbatch' else 'microbatch'}" in n for n in layout.notes
    )
    program = prove(layout, 4)
    rows = traffic(program.probe.as_text(), dict(layout.mesh.sizes))
    sharded = [a for a in layout.parameters.values() if a.stored != a.used]
    stage = sum(a.size * 2 * FLOAT // (2 if a.dims[0] == "layers" else 1) for a in sharded)
    times = {
        kind: bytes_in(rows, kind, "data") / stage for kind in ("all-gather", "reduce-scatter")
    }
    if gather == "step":
        assert times == {"all-gather": 1, "reduce-scatter": 1}
    else:
        assert times["all-gather"] > 4 < 2 * times["reduce-scatter"]


CHOICES = {
    "dots": {"remat": "dots", "kv_heads": 4, "norm": "layer", "bias": True, "tied": True},
    "saved": {"remat": "attended", "gated": True, "positions": "learned", "dropout": 0.1},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_the_decoder_computes_the_same_in_stages(choice):
    """What is kept for backward, dropout's keys by layer, tables used on both ends."""
    prove(in_stages("fsdp+pipeline", "pipe=2,data=2", fields=CHOICES[choice].items()), 2)


@pytest.mark.draws_sharded
def test_layers_that_do_not_divide_are_filled_up_when_asked():
    """Three layers in two stages of two: one of the four places does nothing."""
    fields = {"layers": 3, "dropout": 0.1}.items()
    layout = in_stages("data+pipeline", "pipe=2,data=2", fields=fields, pad=True)
    assert any("padded with layers that do nothing" in note for note in layout.notes)
    prove(layout, 2)


@cache
def gradients(fill: float):
    """The gradients of a small step whose idle stages send `fill`, and the step's means."""
    layout = in_stages("pipeline", "pipe=4", schedule="one_f_one_b")
    step = make_step(layout, microbatches=4)
    program = compile_step(step, hardware=cpu(), for_speed=False)
    state, batch = program.init(0), program.place(probe_batch(layout.model, 0))
    schedule = schedule_for(layout.strategy, layout.mesh, 4)
    parts = take_apart(step.asked.microbatch, step.asked.loss)
    gathering = Gathering.of(layout, step.asked.loss)
    run = staged(layout, parts, schedule, gathering=gathering, fill=fill)
    arguments = (state.parameters, state.model_state, batch, state.key)
    compiled = jax.jit(partial(run, "gradient")).lower(*arguments).compile(QUICK)
    totals, _, means = compiled(*arguments)
    return jax.tree.map(np.asarray, (totals, means))


def test_nothing_leaks_from_idle_stages_into_the_results():
    """Idle ticks hand on NaN, and every gradient and mean is the same to the last bit."""
    clean, polluted = gradients(0.0), gradients(float("nan"))
    leaves = list(zip(jax.tree.leaves(clean), jax.tree.leaves(polluted), strict=True))
    assert len(leaves) > 9
    for a, b in leaves:
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)


def test_idle_ticks_are_counted_while_they_pass():
    """The share that the running program counts is the schedule's, (K - 1) / (M + K - 1)."""
    bubble = gradients(0.0)[1]["bubble"]
    assert float(bubble.value) == pytest.approx(3 / (4 + 3))
    assert float(bubble.weight) == 4 * 2 * (4 + 3)


@cache
def compiled(hardware: str, schedule: str, strategy: str, mesh: str, microbatches: int, **fields):
    layout = in_stages(strategy, mesh, fields=fields.items(), schedule=schedule)
    step = make_step(layout, microbatches=microbatches)
    return compile_step(step, hardware=HARDWARE.load(hardware)(), for_speed=False)


@cache
def inspected(*asked, **fields):
    return inspect(compiled(*asked, **fields))


def bytes_in(rows, kind: str, *axes: str) -> int:
    return sum(row.bytes for row in rows if row.kind == kind and row.axes == axes)


def assert_passed_on(layout, microbatches: int, rows, itemsize: int = FLOAT):
    """Over pipe: as many permutes as the timetable has, each of rows / M x sequence x width.

    Beside them one all-reduce of the gradients of embedding, head and last norm, and scalars.
    """
    config = layout.model.config
    table = timetable(schedule_for(layout.strategy, layout.mesh, microbatches))
    positions = layout.model.batch_size // microbatches * config.sequence
    activation = positions * config.width * itemsize
    assert bytes_in(rows, "collective-permute", "pipe") == table.permutes * activation > 0
    outside = sum(a.size * itemsize for p, a in layout.parameters.items() if "blocks" not in p)
    more = bytes_in(rows, "all-reduce", "pipe") - outside
    assert 0 <= more <= 16 * itemsize
    assert all(row.exact for row in rows)


@pytest.mark.parametrize(("hardware", "schedule"), [on_h100("one_f_one_b")])
def test_neighbours_pass_on_one_microbatchs_activation_a_tick(hardware, schedule):
    """On simulated devices `test_every_schedule...` holds this, of the programs that it runs."""
    inspection = inspected(hardware, schedule, "pipeline", "pipe=2", 4)
    assert_passed_on(inspection.layout, 4, inspection.collectives)
    assert inspection.ok


def assert_summed_in_stages(layout, rows, itemsize: int = FLOAT):
    """Tensor parallelism in two stages: each stage's half of 4 L sums, and one end of the rest.

    Every microbatch passes L / 2 layers of a stage, with two sums each way. The first stage sums
    the embedding, the last the head's input gradient and five sums of (batch, sequence) less one.
    """
    config = layout.model.config
    positions = layout.model.batch_size // layout.row_shares * config.sequence * itemsize
    expected = (4 * config.layers // 2 + 2) * positions * config.width + 4 * positions
    assert abs(bytes_in(rows, "all-reduce", "model") - expected) <= 8 * itemsize


@pytest.mark.parametrize("hardware", [on_h100()])
def test_a_stage_sums_what_its_layers_sum_once_a_microbatch(hardware):
    """On simulated devices `test_pipelines_join...` holds this, of a program that it runs."""
    inspection = inspected(hardware, "one_f_one_b", "tensor+pipeline", "pipe=2,model=2", 4)
    assert_summed_in_stages(inspection.layout, inspection.collectives)


@pytest.mark.parametrize("hardware", ["cpu"])
def test_data_parallel_stages_sum_their_gradients_once_a_step(hardware):
    """Over data: each stage's own parameters once, however many microbatches there are."""
    inspection = inspected(hardware, "one_f_one_b", "data+pipeline", "pipe=2,data=2", 4)
    sums = [r for r in inspection.collectives if r.kind == "all-reduce" and "data" in r.axes]
    held = inspection.layout.parameter_device_bytes
    assert held <= sum(r.bytes for r in sums) <= held + 64 * FLOAT * 4


def test_a_microbatch_of_few_rows_is_sharded_as_far_as_it_divides():
    """Two rows on data=2,model=2: over data by rows, between the parts by sequence over model.

    The whole batch has rows for both axes. Where that decided, two rows were held whole by every
    device of `data`, and each layer summed activations over it.
    """
    inspection = inspected(
        "cpu", "one_f_one_b", "data+sequence+pipeline", "pipe=2,data=2,model=2", 8
    )
    sums = [r for r in inspection.collectives if "data" in r.axes]
    held = inspection.layout.parameter_device_bytes
    assert held <= sum(r.bytes for r in sums) <= held + 64 * FLOAT * 4
    assert inspection.ok


def test_stages_compute_again_what_the_policy_names_and_no_more():
    """Products of the program before XLA: the fewer, the more of them is kept; by any name."""

    def products(remat):
        layout = small_layout("transformer", "pipeline", "pipe=2", remat=remat)
        step = make_step(layout, microbatches=4)
        program = compile_step(step, hardware="cpu", for_speed=False)
        return program.lowered.as_text().count("dot_general")

    some, alike = map(products, ("query,key,value", "query_proj,key_proj,value_proj"))
    assert products("none") < products("minimal") < some == alike < products("full")


@needs_gpu_compiler
def test_what_forward_keeps_is_written_and_read_in_place():
    """On a described H100: no copy of all that microbatches keep, nor of one microbatch's."""
    asked = ("h100", "one_f_one_b", "pipeline", "pipe=2", 8)
    program = compiled(*asked, remat="full", width=256, ffn=256, sequence=64)
    slots = timetable(
        schedule_for(program.step.layout.strategy, program.step.layout.mesh, 8)
    ).slots["keep"]
    kept = slots * 2 * 2 * 64 * 256 * FLOAT  # layers a stage, rows, positions, width
    module = parse(program.text)
    runs = executions(module)
    copied = [
        (i.name, sum(map(bytes_of, i.shapes)))
        for c in module.computations.values()
        if c.name in runs and runs[c.name].times > 1
        for i in c.instructions
        if i.opcode == "copy"
    ]
    assert all(size < kept / slots for _, size in copied), copied


@needs_gpu_compiler
def test_1f1b_holds_fewer_activations_than_gpipe():
    """In XLA's own figures for a described H100: less by what M - K microbatches keep.

    With full rematerialization a microbatch keeps its input to each layer of the stage; GPipe also
    has M results wait for their loss, which 1F1B takes at once. Half of that is asked for: the loop
    of 1F1B holds the working space of both kinds of work, those of GPipe of one each.
    """
    sizes = {"remat": "full", "width": 256, "ffn": 256, "sequence": 64}
    held = {
        name: inspected("h100", name, "pipeline", "pipe=2", 8, **sizes).memory["temporary_bytes"]
        for name in ("gpipe", "one_f_one_b")
    }
    activation = 16 // 8 * 64 * 256 * FLOAT
    fewer = (8 - 2) * 2 * activation + (8 - 1) * activation
    assert held["gpipe"] - held["one_f_one_b"] >= 0.5 * fewer


REFUSED = [
    ("transformer", "context+pipeline", "pipe=2,model=2", {}, "exchange 'ring' passes.*ulysses"),
    ("mlp", "pipeline", "pipe=2", {}, "model 'mlp' has no stack of equal layers.*'pipeline'"),
    ("transformer", "pipeline", "pipe=8", {}, "has 4 layers, and 8 stages.*use pipe=4"),
    ("transformer", "pipeline", "pipe=3", {}, "3 stages .* do not share evenly.*pipe=2 or 4"),
    ("transformer", "pipeline", "pipe=2", {"schedule": "1f1b"}, "unknown schedule '1f1b'"),
    ("transformer", "pipeline", "pipe=2", {"schedule": "gpipe", "chunks": 2}, "interleaved"),
]


@pytest.mark.parametrize(("model", "strategy", "mesh", "options", "sentence"), REFUSED)
def test_stages_that_make_no_sense_are_refused(model, strategy, mesh, options, sentence):
    """Before anything is compiled, with the nearest that works."""
    fields = {"layers": 4} if model == "transformer" else {}
    with pytest.raises((LayoutError, ValueError), match=sentence):
        lay_out(
            small_model(model, **fields),
            strategy=load_strategy(strategy, **options),
            mesh=MeshShape.parse(mesh),
        )


def test_microbatches_that_do_not_divide_are_refused():
    """Three of sixteen rows: with the batches that work."""
    with pytest.raises(LayoutError, match="16 rows cannot be split into 3 microbatches.*15 or 18"):
        make_step(in_stages("pipeline", "pipe=4"), microbatches=3)
    with pytest.raises(LayoutError, match="4 stages do not divide microbatches=2: use 4"):
        layout = small_layout("transformer", "pipeline", "pipe=4", layers=8)
        strategy = load_strategy("pipeline", schedule="interleaved")
        make_step(lay_out(layout.model, strategy=strategy, mesh=layout.mesh), microbatches=2)
