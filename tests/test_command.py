"""The program around its verbs: how it was started, what it keeps, what stays out of a record."""

import json
import sys
from pathlib import Path

import pytest

from jaxpar.cli.main import execute

TINY = ["--set", "width=32", "--set", "hidden=2"]
pytestmark = pytest.mark.usefixtures("own_folder")


def test_hints_repeat_how_the_program_was_started(capsys):
    """Whoever typed `python -m experiments` is not told of another command."""
    argv = ["train", "mlp", *TINY, "--steps", "1", "--mesh", "data=2", "--strategy", "data"]
    for program in ("jaxpar", "python -m experiments"):
        assert execute(argv, program=program) == 0
        hints = capsys.readouterr().out.partition("next:")[2].splitlines()[1:]
        assert [line.partition(" mlp")[0] for line in hints] == [
            f"  {program} train",
            f"  {program} run hybrid_parallel",
        ]
        assert execute(["train"], program=program) == 2
        needs = f"{program}: 'train' needs a MODEL: {program} train MODEL ...\n"
        assert capsys.readouterr().err == needs


def test_what_a_model_prints_is_kept_out_of_the_record(monkeypatch, capsys):
    """Standard output is one line of JSON, whatever a person's factory says."""
    Path("loud.py").write_text(
        "from jaxpar.models import mlp\n"
        "def factory():\n"
        "    print('hello from the factory')\n"
        "    return mlp.model(width=32, hidden=2)\n"
    )
    monkeypatch.delitem(sys.modules, "loud", raising=False)
    argv = ["inspect", "loud:factory", "--strategy", "data", "--mesh", "data=2", "--json"]
    assert execute(argv, program="jaxpar") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["devices"] == 2
    assert "hello from the factory" in err


def test_a_stopped_command_says_what_was_kept(monkeypatch, capsys):
    """Ctrl-C ends with 130 and no traceback, and names the file that holds the steps so far."""
    from jaxpar.cli.verbs import train

    def stopped(program, data, training, *, metrics_file, **rest):
        metrics_file.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    argv = ["train", "mlp", *TINY, "--strategy", "data", "--mesh", "data=2", "--out", "mine"]
    assert execute(argv, program="jaxpar") == 130
    assert capsys.readouterr().err == "jaxpar: stopped; kept: mine/metrics.jsonl\n"
