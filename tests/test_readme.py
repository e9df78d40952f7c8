"""What the README and the pages say is run: Python as it stands, commands with fewer steps."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from small import needs_charts, needs_gpu_compiler

import jaxpar
from jaxpar.cli import options as command_line
from jaxpar.cli.main import VERBS, execute
from jaxpar.core.catalogue import STRATEGIES

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}


def _python(text: str) -> list[str]:
    """The snippets of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)


def _commands(text: str) -> list[str]:
    """What a page tells one to type, without the program's name and without remarks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M)
    typed = (line for block in blocks for line in block.splitlines())
    named = (re.match(r"(?:jaxpar|python -m experiments) (.*)", line) for line in typed)
    return [shlex.join(shlex.split(found[1], comments=True)) for found in named if found]


def _typed(text: str, name: str):
    """A case of a text by this name, skipped where it names a GPU that nothing compiles for."""
    marks = [needs_gpu_compiler] if "h100" in text else []
    if "--report" in text:
        marks.append(needs_charts)
    return pytest.param(text, id=name, marks=marks)


PYTHON = [
    _typed(code, f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, code in enumerate(_python(text))
]
COMMANDS = tuple(dict.fromkeys(line for text in TEXTS.values() for line in _commands(text)))
CHEAPER = {
    "train": ["--steps", "2", "--set", "layers=1", "--set", "width=32", "--json"],
    "verify": ["--set", "layers=1", "--set", "width=64", "--set", "sequence=16", "--json"],
    "inspect": ["--set", "layers=1", "--json"],
    "compare": ["--set", "layers=1", "--json"],
    "diff": ["--set", "layers=1", "--json"],
    "predict": ["--set", "layers=1", "--json"],
    "list": ["--json"],
    "doctor": ["--json"],
}
"""Said after a page's own words, so that a test takes seconds."""
WITHOUT_FIELDS = ("mlp", ":")
"""Models that have no such fields: small already, or a person's own."""
NOT_BY_ITSELF = ("--mesh auto", "before.json", "--plan", "--processes")
"""What resumes a run, reads files or starts processes: test_elastic, test_records, test_search and
test_processes try it."""
ELSEWHERE = {
    "run": "tests/test_experiments.py",
    "bench": "tests/test_experiments.py",
    "checkpoint": "tests/test_damaged_checkpoints.py",
    "report": "tests/test_report.py",
    "search": "tests/test_search.py",
    "scale": "tests/test_search.py",
}

OTHER_WORDS = (
    r"seams?|pinned|pins|on the wire|lies over|lie over|moments?|fakes?|broken promises?"
    r"|train(s|ed)? apart|convicted"
)
"""What the project has other words for: those of the field."""


def test_the_pages_have_what_is_tested_here():
    """The patterns above still find the snippets and the commands, on every page."""
    assert all(_python(text) for text in TEXTS.values())
    assert len(_python(TEXTS["README"])) == 1
    assert {command.split()[0] for command in COMMANDS} == {*CHEAPER, *ELSEWHERE}
    assert sum(text.count("python -m experiments ") for text in TEXTS.values()) >= len(COMMANDS) - 1


@pytest.mark.parametrize("code", PYTHON)
def test_every_snippet_runs(code):
    """A snippet is a program; its own asserts are the test."""
    assert "assert" in code
    exec(compile(code, "a page", "exec"), {"__name__": "page"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    """Each command's verb exists, and every option it uses."""
    options = command_line.parse(shlex.split(command), "jaxpar")
    assert options.words[0] in VERBS.names()


def _without(words, others):
    """The words without the options that others say too: each is said once."""
    pairs = list(zip(others, others[1:], strict=False))
    said = {(a, "" if a != "--set" else b.partition("=")[0]) for a, b in pairs if a[:2] == "--"}
    kept = []
    for word in words:
        if kept and (kept[-1], word.partition("=")[0] if kept[-1] == "--set" else "") in said:
            kept.pop()
        else:
            kept.append(word)
    return kept


@pytest.mark.parametrize(
    "command",
    [
        _typed(c, c[:40])
        for c in COMMANDS
        if c.split()[0] in CHEAPER and not any(words in c for words in NOT_BY_ITSELF)
    ],
)
def test_every_command_succeeds(command, capfd, tmp_path, monkeypatch, request):
    """Each command ends well, at fewer steps and layers; training draws its own first state."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(re.sub(r" --steps \d+", "", command))  # an option is said once
    if words[0] != "train":
        request.getfixturevalue("drawn_once")
    bare = any(mark in word for word in words[1:2] for mark in WITHOUT_FIELDS)
    cheaper = [w for w in CHEAPER[words[0]] if not bare or w != "--set" and "=" not in w]
    if stages := re.search(r"pipe=(\d+)", command):  # as many layers as there are stages
        cheaper = [word.replace("layers=1", f"layers={stages[1]}") for word in cheaper]
    assert execute([*_without(words, cheaper), *cheaper], program="jaxpar") == 0
    assert capfd.readouterr().out.startswith("{")


def test_the_makefile_runs_what_the_readme_shows():
    """`make run` is the command in the picture, and .ci/run calls `make test`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = (ROOT / "docs/run.svg").read_text(encoding="utf-8")
    assert "experiments train mlp --data digits --strategy hybrid --mesh data=4,model=2" in makefile
    assert "verified:" in shown.replace("&#160;", " ")
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", TEXTS)
def test_pages_name_what_is_there(page):
    """Every link leads to a file, and every file of code that a page names exists."""
    text, folder = TEXTS[page], next(p for p in PAGES if p.stem == page).parent
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (folder / link).exists()] == []
    files = re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]*(?:\.py)?)`", text)
    found = {name: (ROOT / name).exists() or (ROOT / "jaxpar" / name).exists() for name in files}
    fields = {name for name in found if name.startswith("batch/")}  # paths in a batch, not files
    assert {name for name, is_there in found.items() if not is_there} <= fields


@pytest.mark.parametrize("page", TEXTS)
def test_pages_use_the_fields_words(page):
    """One idea has one word, and it is the field's."""
    assert re.findall(rf"\b(?:{OTHER_WORDS})\b", TEXTS[page], re.I) == []


def test_every_strategy_and_every_interpreter_has_its_line():
    """A new entry that no page tells of is found here."""
    tables = TEXTS["README"], TEXTS["strategies_and_modes"]
    for name in STRATEGIES.names():
        assert all(f"`{name}`" in text for text in tables), name
    files = [p.read_text(encoding="utf-8") for p in (ROOT / "jaxpar").rglob("*.py")]
    classes = [pair for text in files for pair in re.findall(r"^class (\w+)\((\w+)\)", text, re.M)]
    names = {"Interpreter"}
    while more := {name for name, base in classes if base in names} - names:
        names |= more
    names.remove("Interpreter")
    assert len(names) >= 15
    assert {n for n in names if f"`{n}`" not in TEXTS["how_it_is_made"]} == set()


def _docstring_in_source(module: str, name: str) -> str | None:
    """What is written under `def name` or `class name`, or under its assignment."""
    source = Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8")
    body = ast.parse(source).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return ast.get_docstring(node)
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            match after:
                case ast.Expr(value=ast.Constant(value=str(said))):
                    return said
            return None
    return None


PUBLIC = re.findall(
    r"^from (\S+) import (\w+)", (ROOT / "jaxpar/__init__.py").read_text(encoding="utf-8"), re.M
)


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_every_public_name_is_documented(module, name):
    """By its author: a dataclass writes a docstring of its own, so the source is read."""
    assert hasattr(jaxpar, name)
    said = _docstring_in_source(module, name) or _docstring_of_group(module, name)
    assert said and len(said.split()) >= 4, f"{module}.{name} says {said!r}"


def _docstring_of_group(module: str, name: str) -> str | None:
    """Of a catalogue, that of its class: the entries of one list are said once."""
    value = getattr(importlib.import_module(module), name)
    return None if isinstance(value, type) or callable(value) else type(value).__doc__


def test_what_documents_a_name_is_read_from_the_source(tmp_path, monkeypatch):
    """A dataclass without a docstring has one at run time, and none here."""
    (tmp_path / "undocumented_for_test.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass Thing:\n    x: int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    thing = importlib.import_module("undocumented_for_test").Thing
    assert thing.__doc__
    assert _docstring_in_source("undocumented_for_test", "Thing") is None
