"""Laws of what is explained of compiled updates: collectives, memory, work, partial sums.

A few small programs of each kind, each compiled once; what is explained is held against counts of
the same program's text, XLA's own figures, and closed forms.
"""

import re
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
from small import needs_gpu_compiler, small_layout, small_model

from jaxpar.case import load_strategy
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import axes_of, sizes_of
from jaxpar.core.source_lines import is_own
from jaxpar.hlo.parse import parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.explain.explain import explain
from jaxpar.measures.explain.faults import finding_of
from jaxpar.measures.explain.held import PARTS
from jaxpar.measures.explain.memory import POINTS, step_memory
from jaxpar.measures.explain.places import Places
from jaxpar.measures.explain.record import PHASES, SYNCHRONISATION
from jaxpar.measures.explain.work import work_by_module
from jaxpar.measures.traffic import traffic
from jaxpar.measures.work import work
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from jaxpar.testing.programs import (
    assert_no_collective,
    assert_peak_under,
    assert_same_traffic,
)

pytestmark = pytest.mark.usefixtures("drawn_once")

BOTH = "data=4,model=2"


def case(hardware, *words, **fields):
    """A case (hardware, model, strategy, mode, microbatches, mesh, fields)."""
    marks = [needs_gpu_compiler] if hardware == "h100" else []
    name = "-".join((hardware, *map(str, words[:3])))
    return pytest.param((hardware, *words, tuple(fields.items())), marks=marks, id=name)


CASES = (
    case("cpu", "mlp", "fsdp+tensor", "auto", 1, BOTH),
    case("cpu", "convnet", "fsdp", "auto", 1, BOTH),
    case("cpu", "transformer", "fsdp+tensor", "explicit", 1, BOTH),
    case("cpu", "transformer", "sequence", "auto", 1, BOTH),
    case("cpu", "transformer", "local_sgd", "manual", 1, "replica=2,data=2,model=2"),
    case("cpu", "transformer", "sequence", "manual", 1, BOTH),
    case("h100", "transformer", "fsdp+tensor", "auto", 2, BOTH, remat="full", unroll=1),
    case("h100", "transformer", "fsdp+tensor", "manual", 1, BOTH),
    case("h100", "transformer", "zero1", "auto", 1, BOTH),
    case("h100", "transformer", "pipeline", "auto", 4, "pipe=2,data=2,model=2"),
    case("h100", "moe", "expert", "auto", 1, BOTH),
    case("h100", "transformer", "replica+fsdp", "auto", 1, "replica=2,data=4"),
)


def words_of(number: int) -> Any:
    """The words of one of the cases."""
    return CASES[number].values[0]


@cache
def compiled(hardware, model, strategy, mode, microbatches, mesh, fields):
    """The program of a case."""
    own = small_layout(model, "single", "data=1").model.config
    fields = {name: value for name, value in fields if hasattr(own, name)}
    layout = small_layout(model, strategy, mesh, **fields)
    step = make_step(layout, mode=mode, microbatches=microbatches)
    return compile_step(step, hardware=hardware, for_speed=False, explains=True)


@cache
def told(*words):
    """The collectives of a case, explained."""
    return explain(compiled(*words))


@pytest.mark.parametrize("words", CASES)
def test_every_byte_is_of_one_row_and_has_a_line_and_a_reason(words):
    """The rows sum to what the text has, and less than 2 % of bytes is left unexplained."""
    program, explanation = compiled(*words), told(*words)
    sizes = sizes_of(program.step.layout.mesh)
    counted = traffic(program.text, sizes)
    for kind in {row.kind for row in counted}:
        mine = sum(row.bytes for row in explanation.rows if row.kind == kind)
        assert mine == sum(row.bytes for row in counted if row.kind == kind), kind
    # Each start is carried by an operation in the text, found without our reader.
    starts = r"%([\w.\-]+) = .*? (?:all|reduce|collective|async)-[\w\-]+\("
    names = set(re.findall(starts, program.text))
    assert {name for row in explanation.rows for name in row.operations} <= names
    assert explanation.unattributed_share < 0.02
    for row in explanation.rows:
        assert row.phase in PHASES and row.kind in row.reason and set(row.axes) <= set(sizes)
        file, _, line = row.source.rpartition(":")
        assert is_own(file) and len(Path(file).read_text().splitlines()) >= int(line), row
        assert all(f"`{axis}`" in row.reason for axis in row.axes), row.reason
    shares = explanation.by(lambda row: row.phase)
    each_step = sum(share for phase, share in shares.items() if phase in PHASES)
    assert each_step == sum(row.bytes for row in explanation.rows)


@pytest.mark.parametrize("words", CASES)
def test_weights_and_gradients_are_known_by_their_paths(words):
    """Gathered before use is what is stored otherwise than used, and each gradient is reduced."""
    program, rows = compiled(*words), told(*words).rows
    layout, places = program.step.layout, Places(program.step)
    gathered = {row.parameter for row in rows if row.what.startswith("weight ")}
    moved = {
        places.called(path)
        for path, array in layout.parameters.items()
        if array.stored != array.used
    }
    if words[3] != "explicit" and not layout.strategy.stages:
        assert gathered == moved
    for row in rows:
        if row.what.startswith(("weight ", "gradient of ")) and row.parameter:
            assert row.parameter in map(places.called, layout.parameters)
            assert row.module and row.phase != "update"
        if row.recomputed:
            assert row.phase == "backward"
    reduced = {row.parameter for row in rows if row.what.startswith("gradient of ")} - {""}
    if words[2] in ("fsdp", "fsdp+tensor", "zero1"):
        assert reduced == set(map(places.called, layout.parameters))
    if words[2] == "zero1":
        assert {row.parameter for row in rows if row.what.startswith("new value of ")} == {
            places.called(path)
            for path, array in layout.parameters.items()
            if array.stored != array.optimizer_state
        }


def test_a_synchronisation_of_replicas_is_explained():
    """Its rows sum to what its own program has, each an array of the state; a step has none."""
    words = words_of(4)
    program, explanation = compiled(*words), told(*words)
    assert program.average is not None
    counted = traffic(program.average.as_text(), sizes_of(program.step.layout.mesh))
    rows = explanation.synchronisation
    assert sum(row.bytes for row in rows) == sum(row.bytes for row in counted) > 0
    layout, places = program.step.layout, Places(program.step)
    assert {row.parameter for row in rows} == set(map(places.called, layout.parameters))
    assert layout.strategy.averaging is not None
    every = layout.strategy.averaging.every
    assert explanation.every == every and all(f"every {every} upd" in row.reason for row in rows)
    by_phase = explanation.by(lambda row: row.phase)
    assert by_phase[SYNCHRONISATION] == pytest.approx(sum(r.bytes for r in rows) / every, abs=99)


def test_a_contracted_dim_is_named():
    """The sum behind a row-parallel product says which dim it runs over."""
    rows = told(*words_of(3)).rows
    assert any("contracted dim `ffn` over `model`" in row.reason for row in rows)


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        ("gpipe", {"activation", "gradient of an activation"}),
        ("one_f_one_b", {"activation, and gradient of an activation"}),
    ],
)
def test_what_stages_hand_to_neighbours_is_told(schedule, named):
    """By one permute each way, or both ways by the same where stages take turns."""
    layout = lay_out(
        small_model("transformer").with_batch_size(16),
        strategy=load_strategy("pipeline", schedule=schedule),
        mesh="pipe=2",
    )
    program = compile_step(
        make_step(layout, microbatches=4), hardware="cpu", for_speed=False, explains=True
    )
    rows = [row for row in explain(program).rows if row.kind == "collective-permute"]
    assert {row.what for row in rows} == named and all(row.is_attributed for row in rows)
    assert ("to the one before" in " ".join(row.reason for row in rows)) == (schedule == "gpipe")


@pytest.mark.parametrize("words", CASES)
def test_memory_sums_to_the_peak_that_xla_has_itself(words):
    """The parts are the peak, which is XLA's own; arguments are as their shardings say."""
    program = compiled(*words)
    found, layout = step_memory(program), program.step.layout
    stats = program.update.memory_analysis()
    assert found is not None and set(found.parts) == set(PARTS)
    assert sum(found.parts.values()) == found.peak_bytes == sum(found.modules.values())
    assert max(sum(values) for _, values in found.curve) == found.peak_bytes
    assert len(found.curve) <= POINTS + 1
    mesh, parameters = layout.mesh, layout.parameters.values()
    assert found.parts["parameters"] == sum(array.device_bytes(mesh) for array in parameters)
    used = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    assert found.peak_bytes <= 1.001 * (used + outputs) + 4096
    if words[0] == "h100":
        assert found.difference_bytes is not None
        assert abs(found.difference_bytes) <= 0.01 * stats.peak_memory_in_bytes
    else:
        # XLA's figure for CPUs leaves out all that values take turns in.
        assert found.peak_bytes > stats.peak_memory_in_bytes
        assert found.peak_bytes >= 0.9 * used


@needs_gpu_compiler
def test_what_is_kept_for_backward_and_what_is_gathered_are_told_apart():
    """With full rematerialization less is kept, and gathered weights are no activations."""
    kept = {}
    for words in (words_of(6), words_of(7)):
        found = step_memory(compiled(*words))
        assert found is not None
        most = {name: max(values[n] for _, values in found.curve) for n, name in enumerate(PARTS)}
        assert most["gathered_weights"] > 0 and most["gradients"] > 0
        kept[words[4]] = most["saved_activations"]
    assert 0 < kept[2] < kept[1] / 2


@pytest.mark.parametrize("words", [CASES[0], CASES[3], CASES[6], CASES[10]])
def test_the_work_of_modules_is_the_work_of_the_step(words):
    """FLOPs by module sum to those of all products, recomputation apart; each has its module."""
    step = compiled(*words).step
    rows, whole = work_by_module(step), work(step)
    assert sum(row.flops for row in rows) == sum(whole.computed_flops.values())
    again = sum(whole.recomputed_flops.values())
    assert sum(row.recomputed_flops for row in rows) == again
    assert (again > 0) == (dict(words[6]).get("remat") == "full")
    assert all(row.module for row in rows)


def test_the_work_of_a_dense_layer_is_six_times_its_weights_and_rows():
    """Of an mlp: two forward and four backward for each weight and row; the first layer's input
    has no gradient."""
    step = compiled(*words_of(0)).step
    layout = step.layout
    kernels = [a for p, a in layout.parameters.items() if p.endswith("kernel")]
    rows = layout.model.batch_size
    expected = sum(6 * prod(a.shape) * rows for a in kernels)
    first = min(kernels, key=lambda a: a.path)
    assert sum(r.flops for r in work_by_module(step)) == expected - 2 * prod(first.shape) * rows


# --- assertions for a project's own tests ---------------------------------------------------------


def test_assertions_pass_on_what_is_so_and_tell_what_is_not():
    """fsdp+tensor gathers over `data` alone; the peak and the traffic are those just measured."""
    words = words_of(0)
    program, found = compiled(*words), step_memory(compiled(*words))
    assert found is not None
    assert_no_collective(program, "all-gather", over="model", phase="forward")
    with pytest.raises(AssertionError, match=r"mlp.py:\d+: all-gather of weight layers/.* `data`"):
        assert_no_collective(program, "all-gather", over="data")
    with pytest.raises(RequestError, match="phase"):
        assert_no_collective(program, "all-gather", phase="backwards")
    assert_peak_under(program, found.peak_bytes + 1)
    with pytest.raises(AssertionError, match="the peak is"):
        assert_peak_under(program, found.peak_bytes)
    record = told(*words).record()
    assert_same_traffic(program, record)
    record["collectives"] = record["collectives"][1:]
    with pytest.raises(AssertionError, match="bytes in the record"):
        assert_same_traffic(program, record)


# --- partial sums --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", CASES)
def test_no_program_of_the_catalogue_has_a_partial_sum_at_fault(words):
    """Every partial sum is reduced once, over its own axis, before it is used."""
    assert told(*words).faults == ()


ONE_EACH = (
    case("cpu", "transformer", "tensor", "auto", 1, "model=8"),
    case("cpu", "moe", "expert+fsdp", "auto", 1, "data=2,model=4"),
    case("cpu", "convnet", "local_sgd", "auto", 1, "replica=2,data=2"),
)
"""Programs of which a device has one head, one expert, or one replica."""


@pytest.mark.parametrize("words", ONE_EACH)
def test_a_dim_of_which_a_device_has_one_element_is_no_fault(words):
    """A reshape does not tell which dim of size 1 goes, so nothing is certain of it."""
    assert told(*words).faults == ()


def planted(words, find, change):
    """(place, what is told) when each all-reduce that `find` matches is changed alone."""
    program = compiled(*words)
    sizes, places = sizes_of(program.step.layout.mesh), Places(program.step)
    lines = program.dumps.partitioned.split("\n")
    for n, line in enumerate(lines):
        match = re.match(r"(\s+%([\w.\-]+) = \S+) all-reduce\((%[\w.\-]+)\), (.*)$", line)
        if match and re.search(find, match[4]):
            text = "\n".join([*lines[:n], *change(match), *lines[n + 1 :]])
            sums = Sums(parse(text), sizes, places.dims)
            yield match[4], [str(finding_of(fault, places)) for fault in sums.faults]


@needs_gpu_compiler
def test_a_dropped_psum_of_a_manual_strategy_is_told_by_its_line():
    """Without the sum after a row-parallel product, its line and the contracted dim are named."""
    found = list(
        planted(
            words_of(7),
            r"[\"/]jvp\(\)/\w+/bsf,fd->bsd/psum",
            lambda m: [f"{m[1]} copy({m[3]})"],
        )
    )
    assert found
    for _, sentences in found:
        assert any(
            "before it is reduced over `model`" in s and "`ffn`" in s and "transformer.py:" in s
            for s in sentences
        ), sentences


@needs_gpu_compiler
def test_every_dropped_sum_of_a_manual_program_is_told():
    """All but maxima, which are no sums: each all-reduce left out alone."""
    dropped = list(planted(words_of(7), "", lambda m: [f"{m[1]} copy({m[3]})"]))
    missed = [where for where, sentences in dropped if not sentences]
    assert len(dropped) > 20 and all("pmax" in where for where in missed), missed


@needs_gpu_compiler
@pytest.mark.parametrize("number", [7, 8])
def test_a_doubled_sum_is_told(number):
    """Whatever is summed over an axis twice is found, wherever a sum was put beside the first."""
    found = list(
        planted(
            words_of(number),
            r"dot_general|psum_invariant|/transpose",
            lambda m: [
                f"{m[1]} all-reduce({m[3]}), {m[4]}".replace(f"%{m[2]} =", f"%{m[2]}.first ="),
                f"{m[1]} all-reduce(%{m[2]}.first), {m[4]}",
            ],
        )
    )
    caught = [any("already summed" in s for s in sentences) for _, sentences in found]
    assert len(caught) > 3 and sum(caught) >= 0.8 * len(caught)


@needs_gpu_compiler
def test_a_sum_over_the_wrong_devices_is_told():
    """Groups of another axis leave a partial sum, of which copies are added."""
    found = list(
        planted(
            words_of(6),
            r"/jvp\(\)/.*bsf,fd->bsd/dot_general",
            lambda m: [
                re.sub(
                    r"replica_groups=.*?, use_global",
                    "replica_groups={{0,2,4,6},{1,3,5,7}}, use_global",
                    f"{m[1]} all-reduce({m[3]}), {m[4]}",
                )
            ],
        )
    )
    assert found and all(sentences for _, sentences in found)


def test_a_weight_that_is_left_whole_is_seen_in_what_is_gathered():
    """Stored whole, a weight is not gathered, and its gradient is not scattered."""
    words = words_of(1)
    rows, layout = told(*words).rows, compiled(*words).step.layout
    whole = {p for p, a in layout.parameters.items() if not any(axes_of(e) for e in a.stored)}
    assert whole
    assert not {row.parameter for row in rows if row.what.startswith("weight ")} & whole
