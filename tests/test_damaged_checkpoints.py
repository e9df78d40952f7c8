"""Harm done to checkpoints and runs: told in a sentence, and the last whole state is there."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import perceptron, untested

from jaxpar.cli.main import execute
from jaxpar.core.errors import RequestError
from jaxpar.runtime.checkpoint import saving
from jaxpar.runtime.checkpoint.about import about_run
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint
from jaxpar.runtime.checkpoint.reading import check_arrays
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.checkpoint.resuming import differences
from jaxpar.runtime.outcome import TrainingStopped
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training

TRAINING = Training(steps=6, save_every=2, keep=9)


def program_of(training=TRAINING, **changes):
    """A perceptron whose matrices fill files of their own."""
    return perceptron(training, **{"width": 128, **changes})


@pytest.fixture(scope="module")
def program():
    return program_of()


@pytest.fixture(scope="module")
def digits():
    return untested("digits")


@pytest.fixture(scope="module")
def saved(program, digits, tmp_path_factory):
    """The folder of a run that was saved after steps 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("saved")
    train(program, digits, TRAINING, checkpoints=folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file())


def flip(file: Path, bit: int) -> None:
    """Turn one bit of a file around."""
    held = bytearray(file.read_bytes())
    held[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(held))


def test_a_flipped_bit_is_detected_or_changes_nothing(program, saved, tmp_path):
    """In whichever file of arrays; Orbax alone restores most of them without a word."""
    draw, found = np.random.default_rng(0), {"detected": 0, "harmless": 0}
    for turn in range(60):
        copy = shutil.copytree(saved / "6", tmp_path / str(turn) / "6")
        files = [f for f in files_of(copy) if f.parent.name in ("d", "params") and f.stat().st_size]
        sizes = np.array([file.stat().st_size for file in files], float)
        file = files[draw.choice(len(files), p=sizes / sizes.sum())]
        flip(file, int(draw.integers(8 * file.stat().st_size)))
        (one,) = checkpoints_in(copy.parent)
        try:
            check_arrays(one, one.metadata())
            found["harmless"] += 1
        except DamagedCheckpoint as error:
            assert str(copy) in str(error)
            found["detected"] += 1
    assert found["detected"] > 40, found  # 57 were seen; some bytes nobody reads


def wrong_metadata(name, value):
    """A change to a checkpoint's metadata that keeps it JSON."""

    def harm(checkpoint):
        file = checkpoint / "jaxpar" / "metadata"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))

    return harm


def cut(pattern):
    """Half of each file of that name is lost."""

    def harm(checkpoint):
        for file in checkpoint.rglob(pattern):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return harm


HARM = {
    "no metadata": lambda c: (c / "jaxpar" / "metadata").unlink(),
    "half of the metadata": cut("metadata"),
    "metadata that is no JSON": lambda c: (c / "jaxpar" / "metadata").write_bytes(b"\xff" * 9),
    "other metadata": wrong_metadata("step", 7),
    "a list": lambda c: (c / "jaxpar" / "metadata").write_text("[]"),
    "half of the trees": cut("_METADATA"),
    "half of the manifests": cut("manifest.ocdbt"),
    "half of the data": lambda c: [cut(f.name)(c) for f in files_of(c) if f.parent.name == "d"],
    "no data": lambda c: [f.unlink() for f in files_of(c) if f.parent.name == "d"],
    "no parameters": lambda c: shutil.rmtree(c / "params"),
    "nothing": lambda c: [shutil.rmtree(f) for f in c.iterdir() if f.is_dir()],
    "one wrong bit in the arrays": lambda c: flip(
        max(files_of(c / "params"), key=lambda f: f.stat().st_size), 3000
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(harm, program, folder):
    """And where none is whole, that is said."""
    HARM[harm](folder / "6")
    found = restore(program, folder)
    assert found.folder == folder / "4" and int(found.state.step) == 4
    assert len(found.notes) == 1 and str(folder / "6") in found.notes[0]
    with pytest.raises(DamagedCheckpoint, match="no checkpoint in .* is whole"):
        restore(program, folder / "6")


def test_a_part_that_is_gone_is_named(program, folder, capsys):
    """By its folder, as whoever copied half of a checkpoint looks for it."""
    shutil.rmtree(folder / "6" / "optimizer")
    assert restore(program, folder).notes[0].endswith("6: its folder 'optimizer' is gone")
    assert execute(["checkpoint", "show", str(folder), "--verify"], program="jaxpar") == 1
    assert "its folder 'optimizer' is gone" in capsys.readouterr().out


def test_what_was_being_written_is_no_checkpoint(program, folder):
    """Nor are files that happen to lie there."""
    (folder / "8.orbax-checkpoint-tmp").mkdir()
    (folder / "9").write_text("a file")
    (folder / "10x").mkdir()
    assert [one.step for one in checkpoints_in(folder)] == [6, 4, 2]
    assert restore(program, folder).metadata.step == 6
    with pytest.raises(RequestError, match="there is none"):
        restore(program, folder / "nowhere")


def test_a_damaged_checkpoint_makes_way_for_the_step_trained_again(program, folder, digits):
    """It is kept aside, whole or not, until the next is there."""
    HARM["no parameters"](folder / "6")
    start = restore(program, folder)
    outcome = train(program, digits, TRAINING, state=start, checkpoints=folder)
    assert outcome.checkpoint == folder / "6" and (folder / "6.replaced").is_dir()
    assert restore(program, folder).notes == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 64}, "for 'params/.*' it has float32 of shape"),
        ({"hidden": 4}, "model 'mlp' .* wants"),
    ],
)
def test_another_model_is_told_apart(changes, sentence, folder):
    """By the first array that differs."""
    with pytest.raises(RequestError, match=sentence):
        restore(program_of(**changes), folder)


def test_another_optimizer_seed_or_data_is_told(program, folder, digits):
    """What would be no continuation is refused; what changes is said."""
    with pytest.raises(RequestError, match="use the optimizer that it was saved with"):
        restore(program_of(replace(TRAINING, optimizer="lion")), folder)
    metadata = restore(program, folder).metadata
    with pytest.raises(RequestError, match="seed 0, and seed 3 .* --seed 0"):
        differences(metadata, program, digits, replace(TRAINING, seed=3))
    other = replace(digits, name="others")
    with pytest.raises(RequestError, match="trained on data 'digits'.*this is 'others'"):
        differences(metadata, program, other, TRAINING)
    longer = replace(TRAINING, steps=9, learning_rate=0.5, keep=1)
    (note,) = differences(metadata, program, digits, longer)
    assert note == (
        "training since the checkpoint of step 6: learning_rate 0.002 -> 0.5, steps 6 -> 9"
    )


def test_a_later_format_is_told(program, folder):
    """By the version that wrote it."""
    metadata = restore(program, folder).metadata
    record = replace(metadata, format=99, versions={"jaxpar": "7.0"}).record()
    (folder / "6" / "jaxpar" / "metadata").write_text(json.dumps(record))
    with pytest.raises(RequestError, match="format 99.*use the version that wrote it, 7.0"):
        restore(program, folder)


def test_the_newest_and_the_best_are_kept(program, tmp_path):
    """Two newest, and the one with the least test loss."""
    saver = saving.Saver(program, tmp_path, keep=2, about=about_run(program))
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.4], 1):
        saver.save(program.init(0), step, {"loss": loss, "test_loss": loss})
    saver.close()
    assert [one.step for one in checkpoints_in(tmp_path)] == [5, 4, 2]


def test_nothing_is_deleted_under_a_checkpoints_name(program, tmp_path, monkeypatch):
    """A deletion that a kill cuts short leaves no half of a checkpoint behind, under its name."""
    unlink, deleted = os.unlink, []

    def watched(path, *, dir_fd=None):
        at = Path(os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else "", path)
        deleted.append(at.relative_to(tmp_path).parts[0] if at.is_relative_to(tmp_path) else "")
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", watched)
    saver = saving.Saver(program, tmp_path, keep=1, about=about_run(program))
    for step in (1, 2, 3):
        saver.save(program.init(0), step, {})
    saver.close()
    assert [one.step for one in checkpoints_in(tmp_path)] == [3]
    assert saving.DELETED in deleted and not {"1", "2"} & set(deleted)
    assert not list((tmp_path / saving.DELETED).iterdir())


def test_a_checkpoint_that_cannot_be_written_stops_nothing_but_the_last(
    program, digits, tmp_path, monkeypatch, caplog
):
    """A disk that was full for a while is told; one that is full at the end is an error."""
    whole, full = saving.Saver.save, {2, 4}

    def save(self, state, step, *args, **options):
        if step in full:
            with saving.told(self.folder):
                raise OSError(28, "No space left on device")
        whole(self, state, step, *args, **options)

    monkeypatch.setattr(saving.Saver, "save", save)
    outcome = train(program, digits, TRAINING, checkpoints=tmp_path)
    assert [one.step for one in checkpoints_in(tmp_path)] == [6] and outcome.finished
    assert sum("No space left" in note for note in outcome.notes) == 2
    assert "training goes on" in caplog.text
    full.add(6)
    with pytest.raises(TrainingStopped, match="step 6 of 6 .*No space left") as caught:
        train(program, digits, TRAINING, checkpoints=tmp_path / "other")
    assert caught.value.outcome.steps == 6 and checkpoints_in(tmp_path / "other") == []


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_step(program, digits, tmp_path):
    """As one that is a file."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RequestError, match="checkpoints .*cannot write there"):
            train(program, digits, TRAINING, checkpoints=place)


def test_a_run_is_shown_and_verified_on_the_command_line(folder, capsys):
    """`checkpoint show`: whole ones with exit 0, a damaged one with exit 1 and its name."""
    assert execute(["checkpoint", "show", str(folder), "--verify", "--json"], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in record["checkpoints"]] == [6, 4, 2]
    assert record["newest"]["step"] == 6 and record["newest"]["model"] == "mlp"
    HARM["one wrong bit in the arrays"](folder / "6")
    assert execute(["checkpoint", "show", str(folder.parent / "run")], program="jaxpar") == 0
    assert "whole" not in capsys.readouterr().out
    assert execute(["checkpoint", "show", str(folder), "--verify"], program="jaxpar") == 1
    shown = capsys.readouterr().out.replace("\n", "")
    assert f"{folder}/6" in shown and "damaged" in shown and "step 4 of model mlp" in shown
    assert execute(["checkpoint", "show", "nowhere"], program="jaxpar") == 2
    assert execute(["checkpoint", "list", str(folder)], program="jaxpar") == 2
