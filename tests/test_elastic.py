"""A run that goes on with other devices: the nearest legal mesh, the same global batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small import small_model
from small_runs import perceptron

from jaxpar.case import load_strategy
from jaxpar.cli.main import execute
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.core.progress import here
from jaxpar.program.fit import least_bytes, refuse_too_large, taken_bytes
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.elastic import nearest
from jaxpar.runtime.training import Training


@pytest.mark.parametrize(
    ("strategy", "before", "parts", "devices", "mesh", "after"),
    [
        ("fsdp", "data=8", 1, 6, "data=4", 2),  # 6 and 5 do not divide 16 rows
        ("hybrid", "data=4,model=2", 1, 7, "data=2,model=2", 2),  # before data=4,model=1
        ("hybrid", "data=4,model=2", 1, 1, "data=1", 4),
        ("tensor", "model=8", 1, 5, "model=4", 1),
        ("fsdp", "data=4", 2, 8, "data=8", 1),  # more devices than before
        ("fsdp", "data=4", 1, 4, "data=4", 1),
        ("local_sgd", "replica=4,data=2", 1, 3, "replica=2", 2),
        ("fsdp+pipeline", "pipe=2,data=4", 4, 6, "pipe=2,data=2", 8),
    ],
)
def test_the_mesh_that_uses_most_devices_and_changes_least(
    strategy, before, parts, devices, mesh, after
):
    """The batch is as large as it was, and no device has more rows at a time than it had."""
    model = small_model("transformer").with_batch_size(16)
    was = MeshShape.parse(before)
    found = nearest(model, load_strategy(strategy), was, parts, devices)
    assert (found.layout.mesh, found.microbatches) == (MeshShape.parse(mesh), after)


def test_processes_have_equally_many_devices():
    """Five devices in two processes are four, and one device cannot be shared."""
    model = small_model("transformer").with_batch_size(15)
    asked = (model, load_strategy("data"), MeshShape.parse("data=5"), 1)
    assert nearest(*asked, 5).layout.mesh.devices == 5
    with pytest.raises(RequestError, match="no mesh of 5 devices or fewer, shared out over 2 proc"):
        nearest(*asked, 5, processes=2)
    model = model.with_batch_size(16)
    found = nearest(model, load_strategy("hybrid"), MeshShape.parse("data=4,model=2"), 1, 5, 2)
    assert found.layout.mesh == MeshShape.parse("data=2,model=2")


def test_no_legal_mesh_is_said():
    """Replicas that average are at least two."""
    model = small_model("transformer").with_batch_size(16)
    with pytest.raises(RequestError, match="no mesh of 1 devices or fewer can have its strategy"):
        nearest(model, load_strategy("local_sgd"), MeshShape.parse("replica=2,data=2"), 1, 1)


TINY = ["--set", "width=16", "--set", "hidden=1", "--strategy", "fsdp", "--json"]


def test_what_does_not_fit_is_refused_by_its_shards_and_then_by_xlas_account(monkeypatch):
    """Gradients that microbatches add up are there at once; others need not be."""
    program = perceptron(Training(), width=16, hidden=1)
    least = least_bytes(program.step)
    twice = replace(program.step, microbatches=2)
    assert least_bytes(twice) == least + program.step.layout.parameter_device_bytes
    monkeypatch.setattr("jaxpar.program.fit.machine_bytes", lambda: 4 * least)
    program.check_runs()
    with pytest.raises(RequestError, match="a batch take .* on 4 simulated devices, and this"):
        refuse_too_large(twice, program.hardware)
    with monkeypatch.context() as patch:
        patch.setattr(here, "sharing", 2)  # as two processes do that have 4 devices each
        with pytest.raises(RequestError, match="take .* on 8 simulated devices, and this machine"):
            program.check_runs()
    assert taken_bytes(program.update.memory_analysis()) > least
    with pytest.raises(RequestError, match="what a step computes take"):
        program.init(0)
    own = replace(program, hardware=replace(program.hardware, memory_bytes=least - 1))
    with pytest.raises(RequestError, match="of a device, and one of hardware 'cpu' has"):
        own.check_runs()


@pytest.mark.usefixtures("own_folder")
def test_a_run_is_resumed_on_what_is_left(capsys, monkeypatch):
    """By its folder or, unnamed, the last of its model and strategy; weights start another."""

    def trained(*words, status=0, model="mlp"):
        tiny = [word for word in TINY if model == "mlp" or "=" not in word and word != "--set"]
        assert execute(["train", model, *tiny, *words], program="jaxpar") == status
        told = capsys.readouterr()
        return json.loads(told.out) if status == 0 else told.err

    trained("--mesh", "data=8", "--steps", "2")
    auto = ("--mesh", "auto", "--devices", "5", "--steps", "4")
    with monkeypatch.context() as patch:
        patch.setattr("jaxpar.program.fit.machine_bytes", lambda: 10_000)
        assert "take 0.0 GB on 4 simulated devices" in trained(*auto, "--resume", status=2)
    record = trained(*auto, "--resume")
    assert record["mesh"] == {"data": 4, "model": 1} and record["resumed_from_step"] == 2
    (folder,) = Path("runs").iterdir()
    assert [one.step for one in checkpoints_in(folder / "checkpoints")] == [4, 2]
    metadata = checkpoints_in(folder / "checkpoints")[0].metadata()
    assert metadata.layout["microbatches"] == 2 and metadata.layout["batch"] == 64
    record = trained(*auto, "--resume", "--out", str(folder))
    assert record["steps"] == 0 and record["resumed_from_step"] == 4
    other = trained("--mesh", "data=2", "--steps", "1", "--weights", str(folder), "--out", "other")
    assert other["steps"] == 1 and other["resumed_from_step"] is None
    assert "say --resume" in trained(*auto, status=2)
    assert "say --mesh auto" in trained("--devices", "2", status=2)
    assert "there is no run in" in trained(*auto, "--resume", model="convnet", status=2)
    assert "no checkpoint in nowhere" in trained(*auto, "--resume", "--out", "nowhere", status=2)
