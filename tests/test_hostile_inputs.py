"""What a run or a checkpoint may be handed by anybody: a sentence each, and what is whole stays.

A checksum is no proof: these checkpoints have the right one. No value is taken for what it should
be before its kind is known, nothing is waited for, and nothing is run.
"""

import ast
import json
import os
import re
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import perceptron, untested

from jaxpar.cli.main import execute
from jaxpar.cli.run_files import RunFiles
from jaxpar.cli.screen import Screen
from jaxpar.cli.verbs.checkpoint import _show
from jaxpar.core.catalogue import DATA
from jaxpar.core.errors import RequestError
from jaxpar.core.figures import metrics_text
from jaxpar.runtime.checkpoint.claim import locked, place_of
from jaxpar.runtime.checkpoint.files import MOST_TEXT_BYTES
from jaxpar.runtime.checkpoint.folder import checkpoints_in, one_of
from jaxpar.runtime.checkpoint.metadata import DamagedCheckpoint, Metadata, OtherFormat, _checksum
from jaxpar.runtime.checkpoint.restoring import Restored, restore
from jaxpar.runtime.checkpoint.resuming import differences
from jaxpar.runtime.checkpoint.weights import start_from
from jaxpar.runtime.metrics_file import cut_back
from jaxpar.runtime.outcome import TrainingStopped
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training

TRAINING = Training(steps=4, save_every=2, keep=9)
BIAS = "params/layers/0/bias"


@pytest.fixture(scope="module")
def program():
    return perceptron(TRAINING, width=16, hidden=1)


@pytest.fixture(scope="module")
def digits():
    return untested("digits")


@pytest.fixture(scope="module")
def saved(program, digits, tmp_path_factory):
    """The folder of a run that was saved after steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    train(program, digits, TRAINING, checkpoints=folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def test_nothing_of_a_file_is_run():
    """No pickle, no eval, no exec, anywhere in the package or beside it."""
    root = Path(__file__).parents[1]
    run = {"eval", "exec", "compile", "__import__"}
    unpickled = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    for file in [p for part in ("jaxpar", "experiments") for p in (root / part).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unpickled & {name.partition(".")[0] for name in names}, file
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", "")
                assert called not in run, f"{file}:{node.lineno} {called}"
                loose = [k for k in node.keywords if k.arg == "allow_pickle"]
                assert all(getattr(k.value, "value", True) is False for k in loose), file


def forged(change):
    """A change to a checkpoint's metadata, with the right checksum."""

    def harm(checkpoint):
        file = checkpoint / "jaxpar" / "metadata"
        record = json.loads(file.read_text())
        del record["sha256"]
        change(record)
        file.write_text(json.dumps({**record, "sha256": _checksum(record)}))

    return harm


def other(part, how):
    """Something else in the place of a file or folder of a checkpoint."""

    def harm(checkpoint):
        place = checkpoint / part
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        how(place)

    return harm


def sparse(file):
    """A file that says it has a terabyte."""
    file.touch()
    os.truncate(file, 2**40)


def array(**changes):
    """Other things said of one array."""
    return forged(lambda record: record["arrays"][BIAS].update(changes))


FORGED = {
    "no arrays": forged(lambda r: r.update(arrays={})),
    "an array less": forged(lambda r: r["arrays"].pop(BIAS)),
    "an array more": forged(lambda r: r["arrays"].update({"params/x": r["arrays"][BIAS]})),
    "an array elsewhere": forged(lambda r: r["arrays"].update({"../x": r["arrays"][BIAS]})),
    "parameters only": forged(
        lambda r: r.update(arrays={n: a for n, a in r["arrays"].items() if "params" in n})
    ),
    "another shape": array(shape=[3, 3]),
    "another dtype": array(dtype="int8"),
    "a shape of words": array(shape="x"),
    "a size without end": array(shape=[10**400]),
    "no digest": array(digest=None),
    "another field": forged(lambda r: r.update(self=1)),
    "a field less": forged(lambda r: r.pop("versions")),
    "a mesh that is none": forged(lambda r: r["layout"].update(mesh="../x")),
    "read up to a word": forged(lambda r: r["data"].update(next_batch="x")),
    "read up to before": forged(lambda r: r["data"].update(next_batch=0)),
    "deep": forged(lambda r: r.update(metrics=json.loads("[" * 400 + "]" * 400))),
    "deeper": other("jaxpar/metadata", lambda f: f.write_text("[" * 100_000)),
    "a pipe": other("jaxpar/metadata", os.mkfifo),
    "a device": other("jaxpar/metadata", lambda f: f.symlink_to("/dev/zero")),
    "a loop": other("jaxpar/metadata", lambda f: f.symlink_to(f.name)),
    "a terabyte": other("jaxpar/metadata", sparse),
    "a tree that is a pipe": other("params/_METADATA", os.mkfifo),
    "a tree that is deep": other("params/_METADATA", lambda f: f.write_text("[" * 100_000)),
    "a tree of a terabyte": other("params/_METADATA", sparse),
    "a tree of another kind": other("params/_METADATA", lambda f: f.write_text("[3]")),
    "parameters that are a pipe": other("params", os.mkfifo),
    "parameters that lead out": other("params", lambda f: f.symlink_to("/etc")),
    "parameters in a circle": other("params", lambda f: f.symlink_to("..")),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_checkpoint_that_lies_is_named_and_the_one_before_is_used(name, program, folder, capfd):
    """Though its checksum is right; and no library speaks beside us."""
    FORGED[name](folder / "4")
    found = restore(program, folder)
    assert found.folder == folder / "2" and found.left_out == 0
    assert len(found.notes) == 1 and str(folder / "4") in found.notes[0]
    assert "object has no attribute" not in found.notes[0]
    assert execute(["checkpoint", "show", str(folder), "--verify"], program="jaxpar") == 1
    out, err = capfd.readouterr()
    assert "damaged" in out and "step 2 of model mlp" in out and err == ""


def test_another_version_s_checkpoint_is_told_and_the_others_are_shown(program, folder, capsys):
    """It is not damaged, and going on from one before it would write over it."""
    forged(lambda r: (r.clear(), r.update(format=2, versions=["7"], all="else")))(folder / "4")
    with pytest.raises(OtherFormat, match="format 2.*the version that wrote it, unknown"):
        restore(program, folder)
    assert execute(["checkpoint", "show", str(folder)], program="jaxpar") == 1
    assert "of another version: " in (out := capsys.readouterr().out) and "step 2 of model" in out


def test_what_a_terminal_would_obey_is_shown_instead(folder, capsys):
    """And a word of a million characters by its ends."""
    harm = {"model": "\x1b[31m\udc80" + "x" * 10**6, "versions": {"jax": "\x1b]0;evil\x07"}}
    forged(lambda r: r.update(harm))(folder / "4")
    assert execute(["checkpoint", "show", str(folder)], program="jaxpar") == 0
    out = capsys.readouterr().out
    assert len(out) < 5000 and out.replace("\n", "").isprintable() and r"\x1b[31m\udc80" in out


EXAMPLE = Metadata(
    step=6,
    model="mlp",
    layout={"strategy": "fsdp", "mesh": "data=4", "devices": 4, "batch": 16, "mode": "auto",
            "microbatches": 1, "hardware": "cpu"},
    training={"seed": 0, "clip": None},
    data={"name": "digits", "fields": {"image": [[8], "float32"]}, "fingerprint": "",
          "next_batch": 6},
    metrics={"loss": 1.0},
    versions={"jax": "1"},
    arrays={"params/w": {"shape": [2], "dtype": "float32", "bytes": 8, "sharded": [["data"]],
                         "digest": "0" * 16}},
)  # fmt: skip
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def places(record, path=()):
    """The path of every value in a record."""
    yield path
    if isinstance(record, dict | list):
        entries = record.items() if isinstance(record, dict) else enumerate(record)
        for key, value in entries:
            yield from places(value, (*path, key))


PLACES = [path for path in places(EXAMPLE.record()) if path and path != ("sha256",)]


def changed(path, value, how):
    """The example's record with something else at a place, or nothing, or something beside it."""
    record: Any = EXAMPLE.record()
    del record["sha256"]
    at = record
    for key in path[:-1]:
        at = at[key]
    if how == "less":
        del at[path[-1]]
    elif how == "more" and isinstance(at, dict):
        at["another"] = value
    else:
        at[path[-1]] = value
    return {**record, "sha256": _checksum(record)}


def test_metadata_of_any_shape_is_refused_or_can_be_used(program, digits):
    """It found some forty kinds of traceback when it was first run."""
    screen, kept = Screen(as_json=True), []

    @settings(deadline=None, max_examples=400, database=None)
    @given(st.sampled_from(PLACES), ODD, st.sampled_from(("put", "less", "more")))
    def law(path, value, how):
        record = changed(path, value, how)
        try:
            found = Metadata.of(record, "there")
        except (DamagedCheckpoint, OtherFormat):
            return
        _show(found, screen)
        metrics_text("", found.metrics)
        assert Restored(program.step.state, found, Path()).left_out >= 0
        with suppress(RequestError):
            differences(found, program, digits, TRAINING)
        assert json.dumps(found.record(), sort_keys=True) == json.dumps(record, sort_keys=True)
        kept.append(path)

    law()
    assert kept


def test_the_smallest_forgery_and_the_example_are_told_apart():
    """So that the law above can fail."""
    assert Metadata.of(EXAMPLE.record(), "there") == EXAMPLE
    with pytest.raises(DamagedCheckpoint, match="its 'step' is not of the kind"):
        Metadata.of(replace(EXAMPLE, step=True).record(), "there")


MINE = {
    "a folder": lambda c: ((c / "2024").mkdir(), (c / "2024" / "mine").write_text("mine")),
    "a file": lambda c: (c / "2024").write_text("mine"),
    "a link": lambda c: (c / "2024").symlink_to("/etc"),
}


@pytest.mark.parametrize("name", MINE)
def test_what_is_named_like_a_checkpoint_and_is_none_is_not_deleted(
    name, program, digits, tmp_path
):
    """Orbax would take it for an old one."""
    MINE[name](tmp_path)
    with pytest.raises(RequestError, match="'2024' there is .*for them alone") as caught:
        train(program, digits, replace(TRAINING, keep=1), checkpoints=tmp_path)
    assert not isinstance(caught.value, TrainingStopped)
    assert [p.name for p in tmp_path.iterdir()] == ["2024"]


@pytest.mark.parametrize("place", ["", " ", "\0", "x" * 5000, "a/" * 3000, "/dev/zero", "\udc80",
                                   "gs://a/b", "file", "loop", 3, None, b"x"])  # fmt: skip
def test_a_place_for_checkpoints_that_is_none_is_refused(place, own_folder):
    """Before the first step."""
    Path("file").write_text("")
    os.symlink("loop", "loop")
    with pytest.raises(RequestError):
        place_of(place)
    assert sorted(os.listdir()) == ["file", "loop"]


def test_two_runs_do_not_write_in_one_folder_at_once(program, digits, tmp_path):
    """The second is refused; when the first has ended, however it did, another may."""
    with locked(place_of(tmp_path)), pytest.raises(RequestError, match="another run writes there"):
        train(program, digits, TRAINING, checkpoints=tmp_path)
    assert train(program, digits, replace(TRAINING, steps=1), checkpoints=tmp_path).finished


def test_a_folder_that_becomes_a_file_stops_nothing_but_the_last(program, digits, tmp_path, capfd):
    """And no thread of Orbax's keeps the process from ending: it would for ten minutes."""
    place, before = tmp_path / "c", set(threading.enumerate())

    def lose(step):
        if step == 3:
            while not checkpoints_in(place):  # or what is being written makes the folder anew
                time.sleep(0.01)
            place.rename(tmp_path / "gone")
            place.write_text("")
        return False

    with pytest.raises(TrainingStopped, match="after step 4 of 4 .*cannot write there"):
        train(program, digits, TRAINING, checkpoints=place, asked_to_stop=lose)
    for thread in set(threading.enumerate()) - before:
        thread.join(0 if thread.daemon else 5)
        assert thread.daemon or not thread.is_alive(), thread
    assert place.read_text() == ""
    word: Any = 3
    with pytest.raises(RequestError, match="asked_to_stop is of type int"):
        train(program, digits, TRAINING, asked_to_stop=word)


CIRCLE: dict = {}
CIRCLE["a"] = CIRCLE
TREES = {
    "words": {"layers": {"0": {"bias": np.array(["x"] * 16)}}},
    "objects": {"layers": {"0": {"bias": np.array([object()] * 16)}}},
    "complex": {"layers": {"0": {"bias": np.ones(16) * 1j}}},
    "dates": {"layers": {"0": {"bias": np.zeros(16, "M8[s]")}}},
    "keys": {"layers": {"0": {"bias": jax.random.key(0)}}},
    "names of two kinds": {"layers": {0: {}, "0": {}}},
    "names of another": {None: 3},
    "a circle": CIRCLE,
}


@pytest.mark.parametrize("name", TREES)
def test_weights_that_are_none_are_refused(name, program):
    """Whoever made the tree."""
    with pytest.raises(RequestError, match="the weights"):
        start_from(program, TREES[name])


def test_runs_are_numbered_by_their_own_names(tmp_path):
    """Others that begin alike are no runs, and the next comes after the last, not in a gap."""
    for name in ("checkpoints-x", "checkpoints.zip", "checkpoints-0", "checkpoints-02",
                 "checkpoints-999999999999", "checkpoints-3"):  # fmt: skip
        (tmp_path / name / "5").mkdir(parents=True)
    newest = RunFiles.newest(tmp_path)
    assert newest and newest.checkpoints.name == "checkpoints-3"
    assert RunFiles.fresh(tmp_path).checkpoints.name == "checkpoints-4"
    assert [one.folder.parent.name for one in one_of(tmp_path)] == ["checkpoints-3"]
    for name in ("007", "²", "1e3", "-1", "9" * 30):
        (tmp_path / "checkpoints-3" / name).mkdir()
    assert [one.step for one in checkpoints_in(tmp_path / "checkpoints-3")] == [5]


def test_metrics_of_another_kind_are_left_as_they_are(tmp_path):
    """Rows of later steps go, and half a row; nothing is written through a link."""
    file, mine = tmp_path / "m.jsonl", tmp_path / "mine"
    theirs = b'3\nnull\n\xff\xfe\n{"step": "x"}\n' + b"[" * 100_000 + b"\n"
    file.write_bytes(theirs + b'{"step": 1}\n{"step": 2}\n{"ste')
    mine.write_text("mine")
    file.with_name("m.jsonl.new").symlink_to(mine)
    cut_back(file, 1)
    assert file.read_bytes() == theirs + b'{"step": 1}\n' and mine.read_text() == "mine"


def test_a_text_file_of_fair_size_is_all_that_is_read_whole():
    """A model of a hundred thousand arrays has some tens of megabytes of metadata."""
    assert MOST_TEXT_BYTES >= 100_000 * len(json.dumps(EXAMPLE.record()["arrays"]))


TOKENS = {
    "ids of 4 bytes": (lambda ids: ids.astype("<u4").tobytes(), "as if each took 4 bytes"),
    "ids of 8 bytes": (lambda ids: ids.astype("<i8").tobytes(), "as if each took 8 bytes"),
    "one id": (lambda ids: bytes(2), "1 tokens to train on"),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_another_width_are_no_text(name, tmp_path):
    """Each id would be followed by ids 0, and trained on; a real text has other ids between."""
    made, says = TOKENS[name]
    ids = np.arange(1, 4001) % 250
    (tmp_path / "t.bin").write_bytes(made(ids))
    with pytest.raises(RequestError, match=says):
        DATA.load("tokens")(tmp_path / "t.bin", sequence=16)
    for whole in (ids, ids % 2, np.r_[7, np.zeros(3999, int)], np.zeros(4000, int)):
        whole.astype("<u2").tofile(tmp_path / "whole.bin")
        DATA.load("tokens")(tmp_path / "whole.bin", sequence=16)


def test_a_pipe_in_a_folder_of_tokens_is_not_waited_for(tmp_path):
    """Nor said to be missing."""
    (tmp_path / "train.bin").write_bytes(bytes(200))
    os.mkfifo(tmp_path / "val.bin")
    with pytest.raises(RequestError, match="val.bin: is a folder, a pipe or a device"):
        DATA.load("tokens")(tmp_path, sequence=4)


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize(
    ("change", "words", "says"),
    [
        ({"microbatches": 2**31 - 1}, "--resume", None),
        ({"batch": 7}, "--resume", "2 does not divide 7"),
        ({}, "--resume --devices 0", "use a whole number from 1"),
        ({}, "--resume --set optimizer=lion", "optimizer that it was saved with, 'adamw' and its"),
        ({}, "--resume --set width=32", "for 'params/layers/0/bias' it has .*, 'mlp' and its set"),
    ],
)
def test_a_run_that_is_resumed_on_another_mesh_may_say_anything_of_itself(
    change, words, says, folder, capsys
):
    """Whatever stands in its newest checkpoint; most microbatches are one row each."""
    shutil.rmtree(folder / "2")
    forged(lambda record: record["layout"].update({"mesh": "data=2"} | change))(folder / "4")
    Path("run").mkdir()
    shutil.move(folder, "run/checkpoints")
    line = "train mlp --set hidden=1 --strategy fsdp --mesh auto --out run --steps 5"
    size = "" if "width" in words else " --set width=16"
    status = execute(f"{line}{size} {words}".split(), program="jaxpar")
    told = capsys.readouterr()
    assert status == (2 if says else 0) and (not says or re.search(says, told.err))
    assert told.err.count("\n") <= 1 and (says or "8 microbatches" in told.out)
