"""`--help`: every verb, a verb's options, and what `--set` changes of a model, at any width."""

import pytest

from jaxpar.case import optimizer_options, strategy_options
from jaxpar.cli.help import VERBS, field_lines
from jaxpar.cli.main import execute
from jaxpar.cli.options import SHARED, names
from jaxpar.core.catalogue import MODELS, OPTIMIZERS, STRATEGIES
from jaxpar.runtime.training import Training


def printed(line: str, capsys) -> str:
    """What a command line prints that all is well with."""
    assert execute(line.split(), program="jaxpar") == 0
    return capsys.readouterr().out


def test_help_is_printed_when_nothing_is_asked(capsys):
    """No words, or --help: the verbs with their first lines, and every option."""
    bare = printed("", capsys)
    assert printed("--help", capsys) == bare
    for word in ("train MODEL", "doctor [MODEL]", *(f"--{name}" for name in names())):
        assert word in bare


@pytest.mark.parametrize("verb", VERBS.names())
def test_a_verb_shows_the_options_that_it_reads(verb, capsys):
    """Those alone, and they are options."""
    reads = {*VERBS.constant(verb, "READS"), *SHARED}
    assert reads <= set(names())
    said = printed(f"{verb} --help", capsys)
    assert {name for name in names() if f"  --{name}" in said} == reads


def test_a_model_shows_its_fields_with_their_values(capsys):
    """The model's, training's, the optimizer's and the strategies' that are asked for."""
    said = printed("train mlp --strategy local_sgd+fsdp --set optimizer=sgd --help", capsys)
    for line in ("hidden=3 ", "warmup=None ", "momentum=0.9 ", "every=8 ", "whole_below=16384 "):
        assert f"\n  {line}" in said
    assert "b1=" not in said


@pytest.mark.parametrize("columns", [60, 80, 132])
def test_help_is_no_wider_than_the_terminal(columns, capsys, monkeypatch):
    """Texts go on below themselves."""
    monkeypatch.setenv("COLUMNS", str(columns))
    said = printed("train transformer --help", capsys)
    assert max(len(line) for line in said.splitlines()) <= columns
    assert "".join(said.split()).count("allbutnamesjoinedbycommas") == 1


def test_a_python_without_docstrings_has_its_fields_too(capsys, monkeypatch):
    """python -OO leaves the docstrings out."""
    monkeypatch.setattr("jaxpar.cli.help.field_lines", lambda documented: {})
    assert "\n  hidden=3\n" in printed("train mlp --help", capsys)


def test_every_field_has_its_line():
    """A docstring that forgets one would leave a hole in the help."""
    for name in MODELS.names():
        config = MODELS.load(name)().config
        assert vars(config).keys() <= {n for n, line in field_lines(type(config)).items() if line}
    assert vars(Training()).keys() <= field_lines(Training).keys()
    for name in OPTIMIZERS.names():
        assert optimizer_options(name).keys() <= field_lines(OPTIMIZERS.load(name)).keys()
    for name in STRATEGIES.names():
        assert strategy_options(name).keys() <= field_lines(STRATEGIES.load(name)).keys()
