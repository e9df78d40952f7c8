"""Every experiment file walks, and its claims hold; the benchmarks give rows."""

import json
import shutil
from functools import partial
from itertools import chain, repeat
from typing import Any

import pytest
from small import needs_cudnn, needs_gpu_compiler

from experiments.benchmarks import alternate, gpu_program, soak
from jaxpar import case
from jaxpar.cli.main import execute
from jaxpar.cli.repository import benchmarks, experiments
from jaxpar.experiment import Claim, walk
from jaxpar.program.record import compile_step

OTHERS = ("gpu_program", "soak")
"""Benchmarks that time nothing: they are tested by themselves."""

QUICK = ("data_parallel",)
"""Whose claims are checked at every change; those of the others are under the marker `claims`."""

CLAIMED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.claims)
    for name in experiments().names()
    if name != "compare_prediction"  # of accelerators; test_calibration runs it on CPUs
]


@pytest.mark.parametrize("name", experiments().names())
def test_an_experiment_states_a_question_and_claims_that_need_rows(name):
    """A docstring that asks, cases that resolve, claims that cannot hold of nothing."""
    experiment = experiments().load(name)
    assert "?" in experiments().summary(name)
    assert experiment.cases and experiment.claims
    for one in experiment.cases:
        one.resolve()
    for claim in experiment.claims:
        assert claim.needs >= 1 and not claim.check(())


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("name", CLAIMED)
def test_the_claims_of_an_experiment_hold(name, capsys, tmp_path, monkeypatch):
    """`run NAME` ends with 0, every claim holds, and the rows are on disk."""
    quickly = partial(compile_step, for_speed=False)
    monkeypatch.setattr(
        case, "compile_step", lambda step, hardware, for_speed: quickly(step, hardware=hardware)
    )
    assert execute(["run", name, "--json", "--out", str(tmp_path)], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"] and all(claim["holds"] for claim in record["claims"])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == record["rows"] and len(rows) == len(experiments().load(name).cases)


@pytest.mark.parametrize("more", [(), ("--hardware", "h200")])
def test_an_experiment_walks_on_its_own_hardware_or_on_what_is_asked_for(
    more, tmp_path, monkeypatch, capsys
):
    seen = set()

    def walked(experiment):
        for one in experiment.cases:
            seen.add(one.hardware)
            yield {"model": one.model, "strategy": one.strategy, "mesh": "", "refusal": "none"}

    monkeypatch.setattr("jaxpar.cli.verbs.run.walk", walked)
    words = ["run", "published", "--out", str(tmp_path), *more]
    assert execute(words, program="jaxpar") == 1  # no row, and so no claim
    assert seen == ({"h200"} if more else {"h100", "h100_a3_high", "a100", "v100"})


def test_a_claim_that_fails_is_told_by_the_exit_status(capsys, tmp_path, monkeypatch):
    """A false claim exits 1 and is named."""
    from dataclasses import replace

    from experiments import model_parallel

    false = replace(
        model_parallel.experiment,
        cases=model_parallel.experiment.cases[:1],
        measures=("inspect",),
        claims=(Claim("the moon is a model axis", lambda rows: False, needs=1),),
    )
    monkeypatch.setattr(model_parallel, "experiment", false)
    assert execute(["run", "model_parallel", "--out", str(tmp_path)], program="jaxpar") == 1
    assert "FAILS: the moon is a model axis" in capsys.readouterr().out


def test_a_case_that_cannot_be_laid_out_is_a_row_with_its_refusal():
    """Refusals are answers, not crashes, and no claim counts them."""
    from jaxpar.case import Case
    from jaxpar.experiment import Experiment

    impossible = Experiment(
        cases=(Case("mlp", strategy="tensor", mesh="model=3"),), measures=("inspect",), claims=()
    )
    (row,) = walk(impossible)
    assert "3 does not divide 256" in row["refusal"]
    assert not Claim("anything", lambda rows: True, needs=1).check((row,))


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("name", [n for n in benchmarks().names() if n not in OTHERS])
def test_a_benchmark_gives_a_row_a_layout(name, monkeypatch):
    """At toy size, each row holds both times and their ratio; no time is judged."""
    import importlib

    module = importlib.import_module(f"experiments.benchmarks.{name}")
    monkeypatch.setattr(alternate, "STEPS_A_ROUND", 1)
    monkeypatch.setattr(module, "LAYOUTS", module.LAYOUTS[-1:])
    if hasattr(module, "compile_step"):
        monkeypatch.setattr(module, "compile_step", partial(compile_step, for_speed=False))
    small = {"layers": 1, "width": 32, "heads": 8, "kv_heads": 8, "ffn": 64, "vocabulary": 32}
    small |= {"sequence": 16, "WIDTH": 24, "HIDDEN": 32, "VOCABULARY": 16}
    sizes = {name: small.get(name, size) for name, size in module.SIZES.items()}
    monkeypatch.setattr(module, "SIZES", sizes)
    rows = list(module.benchmark(rounds=1))
    assert len(rows) == {"spelling": 2}.get(name, 1)  # two decoders
    for row in rows:
        ours, other = (v for k, v in sorted(row.items()) if k.endswith("_seconds"))
        assert row["ratio"] == pytest.approx(ours / other)


@needs_gpu_compiler
@needs_cudnn
@pytest.mark.parametrize("plain", ["linen", "nnx"])
def test_a_plain_decoder_is_the_program_of_the_catalogues(plain, monkeypatch):
    """Of one size on described H100s: weights move in bfloat16, gathered and scattered as often;
    nothing as large moves in float32, and as much is computed."""
    sizes = {"width": 512, "layers": 2, "heads": 8, "ffn": 1376}
    monkeypatch.setattr(gpu_program, "SMALL", {**sizes, "kv_heads": 8})
    two: tuple[tuple[str, dict[str, Any]], ...] = (("small", {"unroll": 1}), (plain, {}))
    found = {
        name: gpu_program.compiled(name, "fsdp", "data=8", rows=8, sequence=512, **more)
        for name, more in two
    }
    moved = {name: gpu_program.payloads(program) for name, program in found.items()}
    for payload in moved.values():
        wide = {about: size for about, size in payload.items() if "f32" in about[2]}
        assert all(size < 1 << 20 for size in wide.values()), wide
        kinds = {about[0] for about in payload if about not in wide}
        assert kinds == {"all-gather", "reduce-scatter", "all-to-all"}  # rows of the embedding
    sums = {name: payload.total() for name, payload in moved.items()}
    assert sums[plain] == pytest.approx(sums["small"], rel=0.02)
    figures = {name: gpu_program.figures(program) for name, program in found.items()}
    assert figures[plain]["tflop"] == pytest.approx(figures["small"]["tflop"], rel=0.01)


def _forgetful(run, draw):
    """A fault after which nothing is left, which no run survives."""
    del draw
    shutil.rmtree(run.folder, ignore_errors=True)
    (run.folder / "checkpoints").mkdir(parents=True)


@pytest.mark.claims
@pytest.mark.parametrize("fault", [soak.killed, _forgetful])
def test_a_soak_tells_what_was_promised_and_not_kept(fault, monkeypatch):
    """A killed run keeps all; one whose checkpoints are taken away, nothing."""
    draws = chain([soak.killed], repeat(fault))
    monkeypatch.setattr(soak, "FAULTS", (lambda run, draw: next(draws)(run, draw),))
    monkeypatch.setattr(soak.random.Random, "choice", lambda self, of: of[0])
    row = next(soak.benchmark(1, minutes=1))
    assert row["ok"] == (fault is soak.killed), row
