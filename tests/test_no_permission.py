"""Files and folders that a process may not read or enter: a sentence, whoever asks for them."""

import ctypes
import shutil
from contextlib import contextmanager, suppress

import pytest
from small_runs import perceptron, untested

from jaxpar.cli.run_files import RunFiles
from jaxpar.core.catalogue import DATA
from jaxpar.core.errors import RequestError
from jaxpar.runtime.checkpoint.folder import one_of
from jaxpar.runtime.checkpoint.reading import check_arrays
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.checkpoint.weights import start_from
from jaxpar.runtime.metrics_file import cut_back
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "capset"), reason="root's rights can be laid down on Linux alone"
)

CAPABILITIES = 0x20080522
"""The version of Linux's interface to them."""

READ_ANYTHING = 1 << 1 | 1 << 2
"""What root may: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@contextmanager
def permissions_count():
    """Within, this thread has no right to files but its owner's, be it root's."""
    libc = ctypes.CDLL(None)
    head = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    was, now = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, was) == 0
    now[:] = was[:]
    now[0] &= ~READ_ANYTHING
    assert libc.capset(head, now) == 0
    try:
        yield
    finally:
        assert libc.capset(head, was) == 0


@pytest.fixture(scope="module")
def program():
    return perceptron(Training(), width=16, hidden=1)


@pytest.fixture(scope="module")
def saved(program, tmp_path_factory):
    """The folder of a run that was saved after steps 2 and 4."""
    run = tmp_path_factory.mktemp("saved")
    training = Training(steps=4, save_every=2)
    train(
        program,
        untested("digits"),
        training,
        checkpoints=run / "checkpoints",
        metrics_file=run / "metrics.jsonl",
    )
    return run


LOCKED = {
    "the run": (".", 0),
    "its names alone": (".", 0o444),
    "the checkpoints": ("checkpoints", 0),
    "their names alone": ("checkpoints", 0o444),
    "the newest": ("checkpoints/4", 0),
    "its weights": ("checkpoints/4/params", 0),
    "its metadata": ("checkpoints/4/jaxpar", 0),
    "the metrics": ("metrics.jsonl", 0),
}


@pytest.mark.parametrize("what", LOCKED)
def test_a_run_that_may_not_be_read_is_a_sentence(what, program, saved, tmp_path):
    """Its checkpoints, weights and metrics; and the checkpoint before is used where one may be."""
    run = shutil.copytree(saved, tmp_path / "run")
    place, mode = LOCKED[what]
    (run / place).chmod(mode)
    asks = {
        "show": lambda: [check_arrays(one, one.metadata()) for one in one_of(run)],
        "fresh": lambda: RunFiles.fresh(run),
        "weights": lambda: start_from(program, run),
        "one's weights": lambda: start_from(program, run / "checkpoints" / "4"),
        "restore": lambda: restore(program, run),
        "metrics": lambda: cut_back(run / "metrics.jsonl", 1),
    }
    done = {}
    with permissions_count():
        for name, ask in asks.items():
            with suppress(RequestError):
                done[name] = ask()
        (run / place).chmod(0o755)
    assert len(done) < len(asks)
    if what in ("its weights", "its metadata"):
        assert done["restore"].metadata.step == 2 and "ermission denied" in done["restore"].notes[0]


@pytest.mark.parametrize("mode", [0, 0o444])
def test_tokens_that_may_not_be_read_are_a_sentence(mode, tmp_path):
    """A folder of them, or a file in it."""
    (tmp_path / "t").mkdir()
    for name in ("train.bin", "val.bin"):
        (tmp_path / "t" / name).write_bytes(bytes(200))
    (tmp_path / "t").chmod(mode)
    with permissions_count():
        for path in (tmp_path / "t", tmp_path / "t" / "train.bin"):
            with pytest.raises(RequestError, match="cannot be read .Permission denied"):
                DATA.load("tokens")(path, sequence=4)
        (tmp_path / "t").chmod(0o755)
