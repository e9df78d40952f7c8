"""Search: nothing that fits is refused, what is compiled is ranked, kept and runs as a plan."""

import json
import time
from dataclasses import replace

import pytest
from quick_xla import QUICKLY
from small import needs_gpu_compiler

import jaxpar
from jaxpar.case import Case, load_strategy
from jaxpar.cli.main import execute
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.costs.rates import Device
from jaxpar.hardware.own import hardware_of, with_figures
from jaxpar.measures.work import work
from jaxpar.search import compiled
from jaxpar.search import search as searching
from jaxpar.search.compiled import compile_all
from jaxpar.search.enumerate import candidates
from jaxpar.search.estimate import estimate, facts
from jaxpar.search.record import Candidate
from jaxpar.search.search import search

SMALL = {"layers": 4, "width": 256, "heads": 8, "kv_heads": 8, "ffn": 1024, "vocabulary": 512,
         "sequence": 256, "batch": 32, "compute_dtype": "bfloat16", "unroll": 1}  # fmt: skip
QUESTION = Case("transformer", hardware="h100", set=SMALL)
DEVICE = Device(hardware_of("h100"))


@pytest.fixture(scope="module")
def base():
    asked = replace(QUESTION, strategy="single", mesh="data=1").resolve()
    return asked.layout


def rated(base, devices=8):
    """Every candidate that can be laid out, with its layout and its estimate."""
    step = jaxpar.make_step(base)
    counted = work(step)
    known = facts(base, float(sum(counted.flops.values())), counted.tokens, step)
    for one in candidates(base, devices, 8):
        options = {n: one.set[n] for n in ("schedule", "chunks") if n in one.set}
        try:
            layout = jaxpar.lay_out(
                base.model, strategy=load_strategy(one.strategy, **options), mesh=one.mesh
            )
        except LayoutError:
            continue
        yield one, layout, estimate(layout, one, known, DEVICE)


def test_every_factorization_is_considered_and_none_twice(base):
    """Of 8 devices over four axes, `replica` only outside of `data`."""
    found = list(candidates(base, 8, 8))
    assert len({one.name for one in found}) == len(found)
    meshes = {jaxpar.MeshShape.parse(one.mesh) for one in found}
    assert all(mesh.devices == 8 for mesh in meshes)
    assert {"data=8", "model=8", "pipe=2,data=2,model=2", "replica=4,data=2"} <= {
        one.mesh for one in found
    }
    assert all(mesh.size("model") <= 4 for mesh in map(jaxpar.MeshShape.parse, (
        one.mesh for one in candidates(base, 8, 4))))  # fmt: skip
    chosen = candidates(base, 8, 8, chosen=frozenset({"remat", "microbatches"}))
    assert not any({"remat", "microbatches"} & set(one.set) for one in chosen)


@needs_gpu_compiler
@pytest.mark.parametrize("name", ["data@data=8", "fsdp@data=8", "fsdp+tensor@data=4,model=2"])
def test_the_bound_that_refuses_is_below_every_programs_memory(base, name):
    """State alone: any program of the layout holds as much, so nothing that fits is refused."""
    one, layout, rating = next(
        found for found in rated(base) if f"{found[0].strategy}@{found[0].mesh}" == name
    )
    program = one.case(QUESTION).resolve().compile(for_speed=False)
    assert rating.state_bytes <= program.update.memory_analysis().argument_size_in_bytes
    assert rating.state_bytes > 0 and layout.mesh.devices == 8


def test_estimates_are_orderly(base):
    """Parts make the whole; a slower network never makes a layout faster."""
    slow = Device(with_figures(DEVICE.hardware, {"network_bytes_per_second": 1e9}))
    step = jaxpar.make_step(base)
    counted = work(step)
    known = facts(base, float(sum(counted.flops.values())), counted.tokens, step)
    for one, layout, rating in list(rated(base, 16))[::11]:
        assert rating.seconds == pytest.approx(sum(rating.parts.values()))
        assert estimate(layout, one, known, slow).seconds >= rating.seconds


@pytest.fixture
def quick_processes(monkeypatch):
    """Processes that compile do so with the options of the tests."""
    monkeypatch.setenv("XLA_FLAGS", QUICKLY["XLA_FLAGS"])


SMALL_MLP = {"width": 256, "hidden": 2, "batch": 32}
"""Of a model whose programs compile in a third of a decoder's time."""


@needs_gpu_compiler
@pytest.mark.usefixtures("quick_processes")
def test_a_search_ranks_keeps_and_goes_on(tmp_path, monkeypatch):
    """What is known is not compiled again; the winner fits and is the fastest that does."""
    question = Case("mlp", hardware="h100", set={**SMALL_MLP, "microbatches": 1})
    seen = []
    found = search(
        question, devices=4, budget_seconds=25, workers=1, folder=tmp_path,
        watch=lambda *about: seen.append(about),
    )  # fmt: skip
    assert found.winner is not None and found.winner.fits and len(seen) == len(found.found)
    fitting = [one for one in found.found if one.fits]
    assert found.winner.seconds == min(one.seconds for one in fitting)
    assert found.front[0] == found.winner and found.considered >= len(found.rated)
    assert any(found.winner.candidate.name in sentence for sentence in found.why())
    json.dumps(found.record())
    assert len(repr(found)) < 200 and "is best" in repr(found)
    monkeypatch.setattr(searching, "compile_all", lambda todo, **how: iter(()))
    again = search(question, devices=4, budget_seconds=25, workers=1, folder=tmp_path)
    assert [one.candidate for one in again.found] == [one.candidate for one in found.found]
    other = replace(question, set={**question.set, "width": 128})
    with pytest.raises(AssertionError):
        assert search(other, devices=4, workers=1, folder=tmp_path).found


def test_layouts_that_are_given_are_rated_without_compiling(capsys, monkeypatch, tmp_path):
    """Each as all layouts together are; those that cannot be are refused, each with its reason."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layouts = ["fsdp@data=8@remat=full",
               "zero1+tensor+pipeline@pipe=2,data=2,model=2@microbatches=4"]  # fmt: skip
    refused = "data@data=8@microbatches=5"
    words = ["search", "transformer", *layouts, refused, layouts[0], "--budget", "0s"]
    fields = [f"--set={name}={value}" for name, value in SMALL.items()]
    more = ["--hardware", "h100", "--json", "--out", str(tmp_path)]
    assert execute([*words, *fields, *more], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    told = {one["layout"]: one for one in record["estimates"]}
    assert told.keys() == set(layouts) and record["compiled"] == 0 and record["plan"] is None
    assert all(one["may_fit"] and one["seconds"] > 0 for one in told.values())
    assert [one["layout"] for one in record["refused"]] == [refused]
    everywhere = search(QUESTION, devices=8, budget_seconds=0)
    same = {one.candidate.name: one.record() for one in everywhere.rated}
    first = next(name for name in same if name.startswith("fsdp@data=8@remat=full"))
    assert same[first]["seconds"] == pytest.approx(told[layouts[0]]["seconds"])


def test_a_process_that_dies_is_one_layout_less(monkeypatch):
    """It is refused; the next is answered by a process of its own."""
    code = "import sys; line = sys.stdin.readline(); 'die' in line and sys.exit(1); print('{}')"
    monkeypatch.setattr(compiled, "COMMAND", (compiled.sys.executable, "-c", code))
    cases = [{"model": "die"}, {"model": "fine"}]
    found = dict(compile_all(cases, until=time.monotonic() + 30, workers=1))
    assert found == {0: {"refusal": "compiling it ended the process"}, 1: {}}


def test_a_plan_is_the_layout_of_a_command(tmp_path, capsys):
    """Its words stand where none are typed; what is no plan is refused in a sentence."""
    file = tmp_path / "plan.json"
    plan = {"plan": 1, "model": "mlp", "strategy": "fsdp", "mesh": "data=2", "mode": "auto",
            "hardware": "h100", "set": {"width": 32, "hidden": 1, "batch": 16}}  # fmt: skip
    file.write_text(json.dumps(plan))
    command = ["inspect", "--plan", str(file), "--hardware", "cpu", "--json"]
    assert execute(command, program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["strategy"], record["mesh"]) == ("fsdp", {"data": 2, "model": 1})
    assert execute([*command, "--set", "width=64"], program="jaxpar") == 0
    wide = json.loads(capsys.readouterr().out)
    assert wide["parameters"] > record["parameters"]
    wrong = ({"set": 3}, {"mesh": 3}, {"mesh": " "}, {"set": {"a": [1]}}, {"plan": True})
    texts = ["", "[]", "{}", '{"plan": 2}', *(json.dumps({**plan, **one}) for one in wrong)]
    for text in texts:
        file.write_text(text)
        assert execute(["inspect", "--plan", str(file)], program="jaxpar") == 2
        assert capsys.readouterr().err.count("\n") == 1
    file.write_text(json.dumps(plan))
    assert execute(["inspect", "transformer", "--plan", str(file)], program="jaxpar") == 2
    assert "is for mlp" in capsys.readouterr().err


@needs_gpu_compiler
def test_a_plan_is_predicted_for_its_own_hardware(tmp_path, capsys):
    """Nobody need type it again; other hardware that is typed stands."""
    file = tmp_path / "plan.json"
    plan = {"plan": 1, "model": "mlp", "strategy": "fsdp", "mesh": "data=2", "mode": "auto",
            "hardware": "a100", "set": {"width": 32, "hidden": 1, "batch": 16}}  # fmt: skip
    file.write_text(json.dumps(plan))
    for typed, read in (([], "a100"), (["--hardware", "h100"], "h100")):
        command = ["predict", "--plan", str(file), *typed, "--json"]
        assert execute(command, program="jaxpar") == 0
        assert json.loads(capsys.readouterr().out)["hardware"] == read


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--hardware", "h100"], "say --devices 64"),
        (["--devices", "8", "--budget", "soon"], "write a time"),
        (["fsdp@data=4", "data@data=8"], "of 4 devices and data@data=8 of 8"),
        (["fsdp@data=4", "--devices", "8"], "has 4 devices, not 8"),
        (["fsdp"], "write STRATEGY@MESH"),
        (["fsdp@data=4@width=64"], "say --set width=64"),
        (["fsdp@data=4@microbatches=two"], "use a whole number"),
        (["fsdpp@data=4"], "did you mean 'fsdp'"),
        (["--devices", "0", "--hardware", "h100"], "devices=0"),
        (["--devices", "8", "--hardware", "cpu"], "speed of hardware 'cpu' is not known"),
        (["--devices", "8", "--strategy", "fsdp"], "does not read --strategy"),
    ],
)
def test_a_search_that_makes_no_sense_is_a_sentence(options, told, capsys, tmp_path, monkeypatch):
    """Exit status 2."""
    monkeypatch.chdir(tmp_path)
    assert execute(["search", "mlp", *options], program="jaxpar") == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("layouts", [[], "fsdp@data=4", [4], [["fsdp@data=4"]]])
def test_layouts_in_python_are_a_list_of_texts(layouts):
    """Before the model is laid out."""
    with pytest.raises(RequestError, match="layout"):
        search(replace(QUESTION, model="nobody"), layouts=layouts, budget_seconds=0)


def test_a_question_without_a_layout_is_refused():
    """Three devices do not divide a batch of 32 rows, nor layers, nor widths."""
    with pytest.raises(RequestError, match="no layout on 31 devices"):
        search(replace(QUESTION, set={**SMALL, "batch": 32}), devices=31, budget_seconds=1)


@needs_gpu_compiler
@pytest.mark.usefixtures("quick_processes")
def test_a_layout_is_scaled_both_ways(capsys):
    """The fewest devices are the same point of both; efficiency begins at one."""
    fields = [f"--set={name}={value}" for name, value in SMALL_MLP.items() if name != "batch"]
    words = ["scale", "mlp", "--strategy", "fsdp", "--devices", "2..4", "--batch", "8"]
    assert execute([*words, "--hardware", "h100", *fields, "--json"], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    points = {(one["way"], one["devices"]): one for one in record["points"]}
    assert points.keys() == {("weak", 2), ("weak", 4), ("strong", 2), ("strong", 4)}
    assert points["weak", 2]["efficiency"] == points["strong", 2]["efficiency"] == 1.0
    assert [points[way, 4]["batch"] for way in ("weak", "strong")] == [16, 8]
    assert points["weak", 4]["efficiency"] >= points["strong", 4]["efficiency"]


@pytest.mark.parametrize("devices", ["8", "8..2", "0..4", "2..x"])
def test_a_range_that_makes_no_sense_is_a_sentence(devices, capsys):
    """Exit status 2."""
    words = ["scale", "mlp", "--strategy", "data", "--hardware", "h100", "--devices", devices]
    assert execute(words, program="jaxpar") == 2
    assert "8..1024" in capsys.readouterr().err


@pytest.mark.parametrize("price", ["0", "-2", "nan", "inf"])
def test_a_price_is_a_number_above_nothing(price, capsys):
    """Exit status 2."""
    words = ["predict", "mlp", "--strategy", "data", "--hardware", "h100", "--price", price]
    assert execute(words, program="jaxpar") == 2
    assert "above 0" in capsys.readouterr().err


def test_a_search_without_time_says_so(monkeypatch, capsys, tmp_path):
    """Exit status 1, and no plan."""
    monkeypatch.setattr(searching, "compile_all", lambda todo, **how: iter(()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["search", "mlp", "--hardware", "h100", "--devices", "2", "--out", str(tmp_path / "o")]
    assert execute(words, program="jaxpar") == 1
    assert "a larger budget is needed" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


def estimated(model, strategy, mesh, chosen=None, **fields):
    """The estimate of one layout of a catalogue's model on H100s."""
    chosen = chosen or {}
    single = Case(model, "single", "data=1", hardware="h100", set=fields).resolve()
    step = single.make(single.layout)
    counted = work(step)
    known = facts(single.layout, float(sum(counted.flops.values())), counted.tokens, step)
    layout = Case(model, strategy, mesh, hardware="h100", set=fields).resolve().layout
    return estimate(layout, Candidate(strategy, mesh, chosen), known, DEVICE)


SIZES = {"width": 1024, "layers": 8, "heads": 8, "ffn": 4096, "sequence": 1024, "batch": 64,
         "compute_dtype": "bfloat16"}  # fmt: skip


def test_experts_compute_for_the_tokens_that_visit_them():
    """Two of eight experts, with room for a quarter more, are 2.5 feed-forward parts and not 8; an
    expert computes as much where all of its tokens come to it."""
    few = {**SIZES, "capacity": 1.25, "unroll": 1}
    eight = estimated("moe", "fsdp", "data=8", experts=8, active=2, **few).parts["work"]
    two = estimated("moe", "fsdp", "data=8", experts=2, active=2, **few).parts["work"]
    assert two <= eight < 1.3 * two
    there = estimated("moe", "expert", "model=8", experts=8, active=2, **few).parts["work"]
    assert there == pytest.approx(eight, rel=0.25)


def test_what_all_microbatches_add_up_is_sharded_where_gradients_are():
    """A sum of sharded gradients touches less than one of whole gradients, and both are held."""
    fields, chosen = {**SIZES, "kv_heads": 8}, {"microbatches": 4, "remat": "full"}
    whole, sharded = (
        estimated("transformer", strategy, "data=8", chosen, **fields)
        for strategy in ("data", "fsdp")
    )
    assert sharded.parts["work"] < whole.parts["work"]
    once = estimated("transformer", "fsdp", "data=8", {"remat": "full"}, **fields)
    assert once.parts["work"] < sharded.parts["work"]


@pytest.mark.parametrize("strategy", ["tensor", "sequence"])
def test_what_is_kept_is_sharded_where_it_is(strategy):
    """Outputs of heads and inner widths are over `model`, the residual under `sequence` alone."""
    fields, chosen = {**SIZES, "kv_heads": 8}, {"remat": "minimal"}
    one = estimated("transformer", "fsdp", "data=8", chosen, **fields)
    other = estimated("transformer", f"fsdp+{strategy}", "data=2,model=4", chosen, **fields)
    kept, shared = one.memory_bytes - one.state_bytes, other.memory_bytes - other.state_bytes
    assert (shared > 1.1 * kept) == (strategy == "tensor") and shared > 0.9 * kept
