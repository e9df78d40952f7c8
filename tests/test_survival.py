"""Runs that are stopped, killed, or go wrong: nothing is lost but the steps since the last save."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_runs import perceptron, untested

from jaxpar.cli.main import execute
from jaxpar.core.errors import RequestError
from jaxpar.program.quick import QUICK
from jaxpar.runtime import train as training_room
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.health import SEEN, Spikes
from jaxpar.runtime.outcome import TrainingStopped
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training

TRAINING = Training(steps=6, save_every=2)


@pytest.fixture(scope="module")
def program():
    return perceptron(TRAINING, width=16)


@pytest.fixture(scope="module")
def digits():
    return untested("digits")


def with_nan_at(digits, *steps):
    """The data with no number in the batches of these steps."""

    def draw(step, size, seed, rows):
        batch = digits.draw(step, size, seed, rows)
        bad = np.full_like(batch["image"], np.nan)
        return {**batch, "image": bad} if step in steps else batch

    return replace(digits, draw=draw)


def losses_of(program, data, training, **options):
    seen = []
    outcome = train(
        program, data, training, watch=lambda step, m: seen.append((step, m["loss"])), **options
    )
    return seen, outcome


def test_a_loss_that_is_no_number_stops_and_names_the_first_array(program, digits, tmp_path):
    """With the last good checkpoint; what is saved is finite."""
    with pytest.raises(TrainingStopped) as caught:
        train(program, with_nan_at(digits, 4), replace(TRAINING, steps=20), checkpoints=tmp_path)
    told = str(caught.value)
    assert "the loss of step 5 is nan" in told and "not finite is 'layers/0/bias'" in told
    assert f"the last good checkpoint is {tmp_path}/4" in told
    assert [one.step for one in checkpoints_in(tmp_path)] == [4, 2]
    for leaf in restore(program, tmp_path).state.parameters.values():
        assert np.isfinite(np.asarray(leaf)).all()


def test_a_state_that_is_no_number_is_not_saved(program, digits, tmp_path):
    """Though its loss is finite still: the update was the last, or a checkpoint is due."""
    for steps in (4, 20):
        with pytest.raises(TrainingStopped, match="is not finite|is nan"):
            train(
                program,
                with_nan_at(digits, 3),
                replace(TRAINING, steps=steps),
                checkpoints=tmp_path / str(steps),
            )
        assert [one.step for one in checkpoints_in(tmp_path / str(steps))] == [2]


def test_an_update_that_is_not_finite_can_be_skipped(digits):
    """As if its batch had changed nothing but the count."""
    training = replace(TRAINING, on_nan="skip")
    program = perceptron(training, width=16)
    seen, outcome = losses_of(program, with_nan_at(digits, 3), training)
    assert outcome.last["skipped"] == 1 and outcome.steps == 6
    assert [np.isfinite(loss) for _, loss in seen] == [True] * 3 + [False] + [True] * 2


def test_a_run_can_go_back_and_leave_batches_out(program, digits, tmp_path):
    """To the last checkpoint; then it is a run that never saw the batches since."""
    training = replace(TRAINING, on_nan="restore")
    seen, outcome = losses_of(program, with_nan_at(digits, 3), training, checkpoints=tmp_path)
    (note,) = outcome.notes
    assert "the loss of step 4 is nan" in note and "went back to step 2 and left out 2" in note
    shifted = replace(digits, draw=lambda step, *rest: digits.draw(step + 2 * (step >= 2), *rest))
    other, _ = losses_of(program, shifted, TRAINING)
    finite = [pair for pair in seen if np.isfinite(pair[1])]
    assert finite[3:] == other[2:]  # the third was told before it went back
    metadata = checkpoints_in(tmp_path)[0].metadata()
    assert metadata.step == 6 and metadata.data["next_batch"] == 8


@pytest.mark.parametrize(("bad", "why"), [((0,), "no checkpoint yet"), (range(3, 99), "before")])
def test_going_back_has_an_end(bad, why, program, digits, tmp_path):
    """Where there is nothing to go back to, or it does not help."""
    training = replace(TRAINING, steps=20, on_nan="restore")
    with pytest.raises(TrainingStopped, match=f"on_nan=restore cannot help.*{why}"):
        train(program, with_nan_at(digits, *bad), training, checkpoints=tmp_path)


def test_a_leap_of_the_loss_is_told():
    """What is eight times as far above the median as losses usually are; not what drifts."""
    spikes, draw = Spikes(), np.random.default_rng(0)
    usual = [3 - step / 100 + 0.05 * draw.normal() for step in range(3 * SEEN)]
    assert not any(spikes.see(step, loss) for step, loss in enumerate(usual))
    assert spikes.see(500, 3.6) and not spikes.see(501, 1.5) and not spikes.see(502, float("nan"))
    (note,) = spikes.notes()
    assert note.startswith("the loss leapt to 3.6 at step 500, where 1.")


TINY = ["--set", "width=16", "--set", "hidden=1", "--set", "save_every=2"]
TRAIN = ["train", "mlp", *TINY, "--strategy", "data", "--mesh", "data=2", "--steps", "9"]


def rows_of(folder: Path) -> list[int]:
    """The steps of training that a file of metrics tells of."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_line_that_is_shown_resumes(number, monkeypatch, capsys):
    """Exit 0; the resumed run is the run that was never stopped; a third time it is finished."""
    tell = training_room._Run._tell

    def signalled(self, waiting):
        if waiting[0] == 4:
            os.kill(os.getpid(), number)
        tell(self, waiting)

    with monkeypatch.context() as patch:
        patch.setattr(training_room._Run, "_tell", signalled)
        assert execute([*TRAIN, "--out", "mine"], program="jaxpar") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "this step is finished and saved; once more ends at once" in told
    typed = " ".join([*TRAIN, "--out", "mine"])
    assert f"to go on: jaxpar {typed} --resume" in told
    assert rows_of(Path("mine")) == [1, 2, 3, 4]
    assert execute([*TRAIN, "--out", "mine", "--resume", "--json"], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["resumed_from_step"] == 4 and record["steps"] == 5 and record["finished"]
    assert rows_of(Path("mine")) == list(range(1, 10))
    assert execute([*TRAIN, "--out", "whole"], program="jaxpar") == 0
    ends = [checkpoints_in(Path(name) / "checkpoints")[0].metadata() for name in ("mine", "whole")]
    assert ends[0].arrays == ends[1].arrays and ends[0].metrics == ends[1].metrics
    capsys.readouterr()
    assert execute([*TRAIN, "--out", "mine", "--resume"], program="jaxpar") == 0
    assert "finished already: its 9 steps are done" in capsys.readouterr().out


KILLED = """
import sys
from jaxpar.runtime import train
told = train._Run._tell
def slowly(self, waiting):
    import time
    time.sleep(0.1)
    told(self, waiting)
train._Run._tell = slowly
from jaxpar.cli.main import execute
execute(sys.argv[1:], program="jaxpar")
"""


@pytest.mark.usefixtures("own_folder")
def test_a_killed_run_goes_on_as_if_nothing_had_happened(capsys):
    """Killed while it saves every step: the newest whole checkpoint is there, and the end the same.

    A row of metrics that is half written, or of a step that no checkpoint has, is not told twice.
    """
    argv = [word.replace("save_every=2", "save_every=1") for word in TRAIN]
    argv += ["--out", "mine"]
    # Compiled as this process compiles: by default XLA rounds otherwise.
    flags = " ".join(f"--{n}={str(x).lower()}" for n, x in QUICK.items())
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *argv],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XLA_FLAGS": flags},
    ) as busy:
        until = time.monotonic() + 60
        while len(checkpoints_in("mine/checkpoints")) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        busy.kill()
    assert rows_of(Path("mine"))
    with open("mine/metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    assert execute([*argv, "--resume", "--json"], program="jaxpar") == 0
    record = json.loads(capsys.readouterr().out)
    assert 2 <= record["resumed_from_step"] < 9
    assert rows_of(Path("mine")) == list(range(1, 10))
    assert execute([*TRAIN, "--out", "whole"], program="jaxpar") == 0
    ends = [checkpoints_in(Path(name) / "checkpoints")[0].metadata() for name in ("mine", "whole")]
    assert ends[0].arrays == ends[1].arrays


@pytest.mark.usefixtures("own_folder")
def test_nothing_to_resume_is_said_and_a_second_run_has_files_of_its_own(capsys):
    """`--resume` takes the newest of several runs in a folder."""
    argv = [*TRAIN, "--out", "mine"]
    argv[argv.index("9")] = "2"
    assert execute([*argv, "--resume"], program="jaxpar") == 0
    assert "nothing to resume in mine: this run starts at step 0" in capsys.readouterr().out
    assert execute([*argv, "--seed", "1"], program="jaxpar") == 0
    assert {p.name for p in Path("mine").iterdir()} == {
        "metrics.jsonl",
        "metrics-2.jsonl",
        "checkpoints",
        "checkpoints-2",
    }
    assert execute([*argv, "--resume"], program="jaxpar") == 2
    assert "was trained with seed 1, and seed 0 gives other batches" in capsys.readouterr().err


def test_a_run_that_cannot_begin_leaves_the_folder_to_the_next(program, digits, tmp_path):
    """One whose metrics cannot be written, before its first step."""
    with pytest.raises(RequestError, match="metrics file"):
        train(program, digits, TRAINING, checkpoints=tmp_path / "c", metrics_file=tmp_path)
    assert train(program, digits, TRAINING, checkpoints=tmp_path / "c").finished
