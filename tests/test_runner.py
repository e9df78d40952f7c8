"""The runner as a person meets it: exit status, one sentence for a mistake, one JSON record."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxpar.case import Case
from jaxpar.cli.main import execute
from jaxpar.core.catalogue import CATALOGUES, MODELS, STRATEGIES
from jaxpar.experiment import Claim, Experiment

ROOT = Path(__file__).parent.parent
TINY = ["--set", "width=32", "--set", "hidden=2"]
pytestmark = pytest.mark.usefixtures("own_folder")


def refused(argv: list[str], capsys) -> str:
    """The one sentence that `argv` is refused with: exit 2, nothing printed, nothing written."""
    before = sorted(Path().rglob("*"))
    status = execute(argv, program="jaxpar")
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("jaxpar: "), err
    assert "Traceback" not in err
    assert sorted(Path().rglob("*")) == before
    return err


BAD = [
    # A mesh that does not divide: the dim, both sizes and the nearest that work.
    ("train mlp --mesh data=4,model=3", "'hidden_0' has size 256 .* 'model' has 3 devices"),
    ("train mlp --mesh data=4,model=3", "2 or 4 devices divide it, and 3 divides 255 and 258"),
    ("train mlp --mesh data=4 --batch 30", "'batch' has size 30 .* 'data' has 4 devices"),
    ("train mlp --mesh data=4 --batch 30", "3 or 5 devices divide it, and 4 divides 28 and 32"),
    ("train mlp --mesh data=4 --microbatches 3", "12 does not divide 64; use a batch of 60 or 72"),
    # More shards than heads.
    (
        "verify transformer --strategy tensor --mesh model=32",
        "'kv_heads' has size 16 .* 32 devices",
    ),
    # Names that are not, with the nearest that is.
    ("train mlp --mesh dta=2", "unknown mesh axis 'dta': did you mean 'data'"),
    ("trian mlp", "unknown verb 'trian': did you mean 'train'"),
    ("train mpl", "unknown model 'mpl': did you mean 'mlp'"),
    ("train mlp --strategy tensr", "unknown strategy 'tensr': did you mean 'tensor'"),
    ("train mlp --hardware h10", "unknown hardware 'h10': did you mean 'h100'"),
    ("train mlp --mode atuo", "unknown mode 'atuo': did you mean 'auto'"),
    ("train mlp --data digts", "unknown dataset 'digts': did you mean 'digits'"),
    ("train mlp --stratgy data", "unknown option '--stratgy': did you mean '--strategy'"),
    ("train mlp --set widht=3", "'widht': did you mean 'width'"),
    ("train mlp --set optimizer=adamv", "unknown optimizer 'adamv': did you mean 'adamw'"),
    ("train mlp --set decay=cosin", "unknown decay 'cosin': did you mean 'cosine'"),
    ("train transformer --set remat=ful", "'ful': did you mean 'full'"),
    ("run data_paralel", "unknown experiment 'data_paralel': did you mean 'data_parallel'"),
    ("bench overhed", "unknown benchmark 'overhed': did you mean 'overhead'"),
    # Words that are no request.
    ("run hybrid_parallel --hardware nosuch", "unknown hardware 'nosuch'"),
    ("bench soak --minutes 0", "--minutes 0.0: use more than 0"),
    ("train", "'train' needs a MODEL"),
    ("train mlp convnet", "'train' takes one MODEL, and got mlp convnet"),
    ("list mlp", "'list' takes no name"),
    ("train mlp --mesh data", "'data' is not axis=size"),
    ("train mlp --mesh data=2,data=4", "gives axis 'data' twice"),
    ("train mlp --mesh", "Missing value for flag --mesh"),
    ("train mlp --set width", "write field=value"),
    ("train mlp --set width=abc", "width is a whole number .* 'abc' is not"),
    ("verify mlp --strategy data+", "a name is missing beside"),
    ("verify mlp --strategy data+fsdp+data", "'data' is there twice"),
    ("inspect no.such:model", "cannot import 'no.such'"),
    ("inspect os:getcwd", "the factory returned str; return what jaxpar.model"),
    # Options that would be obeyed in silence, or not at all.
    ("verify mlp --lint warn", "'verify' does not read --lint, as inspect, train does"),
    ("run data_parallel --steps 3", "'run' does not read --steps, as train, verify does"),
    ("inspect mlp --mesh data=2 --mesh data=4", "--mesh is given 2 times: say it once"),
    # Sizes below what there can be.
    ("train mlp --mesh data=-4", "'data' has size -4"),
    ("train mlp --mesh data=0", "'data' has size 0"),
    ("train mlp --batch -8", "batch size -8"),
    ("train mlp --steps 0", "steps=0: use 1 or more"),
    ("train mlp --steps -3", "steps=-3"),
    ("train mlp --microbatches 0", "microbatches=0: use 1 or more"),
    ("train mlp --seed -1", "seed=-1"),
    ("train mlp --set width=-4", "width=-4"),
    ("train mlp --set width=0", "width"),
    ("train mlp --set learning_rate=-1", "learning_rate=-1.*use a number from 0 up"),
    ("train mlp --set b2=1", "b2=1.*use a number from 0 up to, not including, 1"),
    ("train mlp --set dropout=1.5", "dropout=1.5"),
    ("train transformer --set layers=0", "layers=0"),
    ("train transformer --set vocabulary=0", "vocabulary=0"),
    ("train transformer --set sequence=0", "sequence=0"),
    ("train transformer --set kv_heads=3", "heads=16 are not shared evenly by kv_heads=3"),
    # Hardware and data that cannot do what is asked.
    ("train mlp --hardware local --mesh data=64", "'local' means this machine's accelerators"),
    ("train mlp --hardware h100", "described, not present"),
    ("verify mlp --hardware h100", "described, not present"),
    ("train mlp --data text", "model 'mlp' reads 'image'.*usually trained on 'digits'"),
    ("train transformer --data none.bin", "none.bin: no such file"),
]


@pytest.mark.parametrize(("line", "sentence"), BAD)
def test_a_mistake_gets_one_sentence_and_status_2(line, sentence, capsys):
    """What a person can mistype is refused with the repair, before anything is made."""
    said = refused(line.split(), capsys)
    assert re.search(sentence, said), said


TOKEN_FILES = {
    "empty": (b"", "is empty"),
    "cut": (b"\1\0\2", "an odd number"),
    "short": (b"\1\0" * 10, "tokens to train on, but sequence=128 needs"),
    "beyond": (np.full(4000, 999, "<u2").tobytes(), "has id 999, but vocabulary=256"),
}


@pytest.mark.parametrize("name", TOKEN_FILES)
def test_a_token_file_that_cannot_be_read_is_refused(name, capsys):
    """Empty, cut off, too short, or with ids beyond the vocabulary; the file is named."""
    content, sentence = TOKEN_FILES[name]
    Path(f"{name}.bin").write_bytes(content)
    said = refused(["train", "transformer", "--data", f"{name}.bin"], capsys)
    assert sentence in said and f"{name}.bin" in said


def test_an_axis_asked_to_split_two_dims_of_one_array_is_refused(monkeypatch, capsys):
    """A user's model whose dims share a role: the array, both dims and the rule are named."""
    Path("mine.py").write_text(
        "from dataclasses import replace\n"
        "from jaxpar.models import mlp\n"
        "def factory():\n"
        "    model = mlp.model()\n"
        "    return replace(model, roles={name: 'inner' for name in model.roles})\n"
    )
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    said = refused(["inspect", "mine:factory", "--strategy", "tensor", "--mesh", "model=2"], capsys)
    assert "'model' is asked to split both dim 'hidden_0' and dim 'hidden_1'" in said
    assert "layers/1/kernel" in said


def test_a_mesh_larger_than_the_devices_there_are_is_refused(capsys):
    """JAX starts with so many simulated devices, and cannot add any."""
    jax.devices()
    said = refused(["inspect", "mlp", "--strategy", "data", "--mesh", "data=64", "--json"], capsys)
    assert "needs 64 devices" in said and f"started with {jax.device_count()} CPU devices" in said


def test_an_out_folder_that_is_a_file_is_refused(capsys):
    """Nothing is trained whose metrics could not be written."""
    Path("taken").write_text("mine")
    said = refused(["train", "mlp", *TINY, "--steps", "1", "--out", "taken"], capsys)
    assert "taken" in said
    assert Path("taken").read_text() == "mine"


def record_of(argv: list[str], capsys, status: int = 0) -> dict:
    """The only JSON object on standard output, which is its only line."""
    assert execute([*argv, "--json"], program="jaxpar") == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\n"), out
    return json.loads(out)


def test_train_tells_its_record_and_writes_its_metrics(capsys):
    """`train --json`: one object with accuracy, devices and seconds; a line a step in the file."""
    argv = ["train", "mlp", *TINY, "--steps", "40", "--mesh", "data=4,model=2", "--out", "mine"]
    record = record_of([*argv, "--strategy", "hybrid"], capsys)
    assert record["devices"] == 8 and record["mesh"] == {"data": 4, "model": 2}
    assert 0.3 < record["test_accuracy"] <= 1  # ten classes, by chance 0.1; 0.45 seen
    assert record["last_loss"] < record["first_loss"]
    assert record["seconds"] > 0
    lines = [json.loads(line) for line in Path("mine/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(1, 41), 40]
    assert lines[-1]["test_accuracy"] == record["test_accuracy"]
    assert record["finished"] and record["checkpoint"].endswith("mine/checkpoints/40")
    assert {str(p) for p in Path().glob("*/*")} == {"mine/checkpoints", "mine/metrics.jsonl"}
    assert [p.name for p in Path("mine/checkpoints").iterdir()] == ["40"]


def test_verify_tells_error_bound_and_dtype(capsys):
    """`verify --json`: ok, the largest relative error, its bound and the dtype; no file is made."""
    argv = ["verify", "mlp", *TINY, "--strategy", "data", "--mesh", "data=2"]
    record = record_of(argv, capsys)
    assert record["ok"] is True and record["dtype"] == "float64"
    assert 0 <= record["max_relative_error"] <= record["bound"] == 1e-9
    assert list(Path().iterdir()) == []


def test_inspect_tells_the_collectives(capsys):
    """`inspect --json`: every collective explained, their sums, memory and work."""
    argv = ["inspect", "mlp", *TINY, "--strategy", "data", "--mesh", "data=2", "--what-if"]
    record = record_of(argv, capsys)
    (said,) = record["traffic"]
    rows = record["collectives"]
    assert sum(row["bytes"] for row in rows) == said["bytes"]
    told = "kind axes bytes count phase source module reason overlapped crosses_nodes".split()
    assert all(set(told) <= set(row) and row["source"] for row in rows)
    assert record["unattributed_share"] < 0.02 and record["findings"] == []
    assert sum(record["memory"]["parts"].values()) == record["memory"]["peak_bytes"]
    assert record["flops"]["per_step"] == record["work"]["computed_flops_per_step"]
    (change,) = record["what_if"]
    assert change["change"] == "microbatches=2"
    assert change["peak_bytes"] + change["peak_bytes_less"] == record["memory"]["peak_bytes"]
    assert said["kind"] == "all-reduce" and said["axes"] == ["data"] and said["count"] >= 1
    # 64 x 32 + 32, 32 x 32 + 32, 32 x 10 + 10 parameters of four bytes, and four scalars.
    assert record["parameter_bytes"] == 4 * (64 * 32 + 32 + 32 * 32 + 32 + 32 * 10 + 10)
    assert 0 < said["bytes"] - record["parameter_bytes"] <= 16


def test_inspect_gives_each_device_along_data_a_row_where_the_usual_batch_does_not(capsys):
    """A catalogue model on more devices than its usual batch has rows is inspected all the same."""
    argv = ["inspect", "mlp", *TINY, "--strategy", "data", "--mesh", "data=7"]
    assert record_of(argv, capsys)["batch"] == 7


def test_list_shows_every_entry_with_its_first_line(capsys):
    """`list --json` is the catalogues, and the repository's experiments after them."""
    record = record_of(["list"], capsys)
    for stamp in ("schema", "kind", "about"):
        record.pop(stamp)
    assert list(record) == [*(c.title for c in CATALOGUES), "experiments"]
    assert tuple(record["models"]) == MODELS.names()
    assert tuple(record["strategies"]) == STRATEGIES.names()
    assert all(line for room in record.values() for line in room.values())
    assert "data_parallel" in record["experiments"]


class Shelf:
    """A catalogue that holds one experiment."""

    def __init__(self, experiment):
        self.load = lambda name: experiment
        self.summary = lambda name: "A question?"


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_a_claim_that_fails_is_status_1(holds, status, monkeypatch, capsys):
    """A run whose claims do not all hold ends with 1; a refused case is a row, not an end."""
    tiny = {"width": 32, "hidden": 2}
    experiment = Experiment(
        cases=tuple(Case("mlp", strategy="data", mesh=f"data={n}", set=tiny) for n in (2, 3)),
        measures=("inspect",),
        claims=(Claim("it is so", lambda rows: holds and len(rows) == 1, needs=1),),
        columns=("mesh",),
    )
    monkeypatch.setattr("jaxpar.cli.verbs.run.experiments", lambda: Shelf(experiment))
    record = record_of(["run", "question", "--out", "kept"], capsys, status)
    assert record["ok"] is holds
    assert "'data' has 3 devices" in record["rows"][1]["refusal"]
    assert len(Path("kept/rows.jsonl").read_text().splitlines()) == 2


def test_a_claim_about_too_few_rows_does_not_hold():
    """All of none is true, so a claim says how many rows it needs; refused ones do not count."""
    claim = Claim("all are fine", lambda rows: True, needs=2)
    assert not claim.check(({"a": 1}, {"refusal": "no"}))
    assert claim.check(({"a": 1}, {"a": 2}))


def run(*argv: str, **env: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "experiments", *argv],
        cwd=ROOT,
        env={**environment, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_fresh_process_finds_its_own_devices_and_keeps_stdout_pure():
    """With no XLA_FLAGS set, the mesh's devices are made; what people read goes to stderr."""
    done = run(
        "inspect",
        "mlp",
        *TINY,
        "--strategy",
        "data",
        "--mesh",
        "data=12",
        "--batch",
        "24",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"] == 12
    assert "all-reduce" in done.stderr


def test_a_fresh_process_ends_with_status_2_and_no_traceback():
    """The status and the sentence reach the shell."""
    done = run("train", "mlp", "--mesh", "data=3", "--json")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("python -m experiments: ") and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
