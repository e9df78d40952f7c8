"""What the README says is run: its Python as it stands, its commands with fewer steps."""

import re
import shlex
from pathlib import Path

import pytest

from jaxpar.cli import options as command_line
from jaxpar.cli.main import VERBS, execute
from jaxpar.program.record import QUICK

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = re.findall(r"^python -m experiments (.*)$", README, re.M)
CHEAPER = {
    "train": ["--steps", "2", "--set", "layers=1", "--json"],
    # As many layers as the stages of the README's pipeline.
    "verify": ["--set", "layers=4", "--set", "width=64", "--set", "sequence=16", "--json"],
    "inspect": ["--json"],
    "list": ["--json"],
    "doctor": ["--json"],
}
"""Said after the README's own words, so that a test takes seconds."""
ELSEWHERE = {"run": "tests/test_experiments.py", "bench": "tests/test_experiments.py"}


def test_the_readme_has_what_is_tested_here():
    """The patterns above still find the snippets and the commands."""
    assert len(PYTHON) == 4
    assert {command.split()[0] for command in COMMANDS} == {*CHEAPER, *ELSEWHERE}


@pytest.mark.parametrize(
    "code", PYTHON, ids=["first screen", "a schedule", "your own model", "names of your own"]
)
def test_every_snippet_runs(code):
    """A snippet is a program; its own asserts are the test."""
    assert "assert" in code
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    """Each command's verb exists, and every option it uses."""
    options = command_line.parse(shlex.split(command), "jaxpar")
    assert options.words[0] in VERBS.names()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[0] in CHEAPER])
def test_every_command_succeeds(command, capsys, tmp_path, monkeypatch):
    """Each command ends well, at fewer steps and layers, compiled as users compile it.

    XLA's older code rounds a draw otherwise in two programs, which verify would tell.
    """
    monkeypatch.delitem(QUICK, "xla_cpu_use_fusion_emitters", raising=False)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    # A person's own model has no fields to set.
    cheaper = ["--json"] if ":" in command else CHEAPER[words[0]]
    assert execute([*words, *cheaper], program="jaxpar") == 0
    assert capsys.readouterr().out.startswith("{")


def test_the_makefile_runs_what_the_readme_shows():
    """`make run` is the command in the picture, and .ci/run calls `make test`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = (ROOT / "docs/run.svg").read_text(encoding="utf-8")
    assert "experiments train mlp --data digits --strategy hybrid --mesh data=4,model=2" in makefile
    assert "verified:" in shown.replace("&#160;", " ")
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", re.findall(r"^from \S+ import (\w+)", (ROOT / "jaxpar/__init__.py").read_text(), re.M)
)
def test_every_public_name_is_documented(name):
    """A public name has a docstring; catalogues are values and have their class's."""
    import jaxpar

    assert getattr(jaxpar, name).__doc__
