"""A folder is a catalogue, a file in it an entry."""

import sys

import pytest

from jaxpar.core.catalogue import CATALOGUES, HARDWARE, MEASURES, MODELS, STRATEGIES, Catalogue
from jaxpar.core.errors import RequestError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A package with an entry, a broken entry and a file that serves them."""
    folder = tmp_path / "shelf_for_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(
        '"""Good first line.\n\nMore."""\n\ndef thing():\n    return 7\n'
    )
    (folder / "broken.py").write_text(
        '"""Broken, but listed."""\nimport no_such_module_at_all\n\nthing = None\n'
    )
    (folder / "record.py").write_text(
        '"""Serves the others.\n\nthing: what each of them is.\n"""\n\n'
        "def things():\n    thing = []\n    return thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "rows.py").write_text(
        '"""Things that differ in numbers."""\n\n'
        "def make(summary, size):\n    return lambda name, more=0: (name, size + more)\n\n"
        'things = {\n    "big": make("Nine.", 9),\n    "small": make("One.", size=1),\n}\n'
    )
    yield Catalogue("shelf_for_test", "thing")
    for name in [n for n in sys.modules if n.partition(".")[0] == "shelf_for_test"]:
        del sys.modules[name]


def test_a_new_file_is_a_new_entry(shelf):
    """Nothing else is edited: the names are the files', where they define the noun."""
    assert shelf.names() == ("big", "broken", "good", "small")
    (shelf.folder / "added.py").write_text('"""Added."""\n\ndef thing():\n    return 8\n')
    assert shelf.names() == ("added", "big", "broken", "good", "small")
    assert shelf.load("added")() == 8


def test_listing_imports_nothing(shelf):
    """A broken entry is listed with its first line, and breaks only when it is loaded."""
    lines = ["Nine.", "Broken, but listed.", "Good first line.", "One."]
    assert [shelf.summary(n) for n in shelf.names()] == lines
    assert not {"shelf_for_test.good", "shelf_for_test.rows"} & sys.modules.keys()
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        shelf.load("broken")
    assert shelf.load("good")() == 7


def test_a_row_is_an_entry_by_its_key(shelf):
    """It is called with its own name first; the file of the table is no entry."""
    assert shelf.load("big")() == ("big", 9)
    assert shelf.load("small")(more=2) == ("small", 3)
    with pytest.raises(RequestError, match="unknown thing 'rows'"):
        shelf.load("rows")


def test_two_entries_of_one_name_are_a_fault_of_ours(shelf):
    """A row by the name of a file would hide it."""
    rows = shelf.folder / "rows.py"
    rows.write_text(rows.read_text().replace('"big"', '"good"'))
    with pytest.raises(AssertionError, match="two entries are called 'good'"):
        shelf.names()


def test_an_unknown_name_is_refused_with_the_nearest(shelf):
    """And with all that there are."""
    with pytest.raises(
        RequestError, match=r"unknown thing 'god': did you mean 'good'.*broken, good"
    ):
        shelf.load("god")
    with pytest.raises(RequestError, match="unknown thing 'record'"):
        shelf.load("record")


def test_what_an_entry_says_in_capitals_is_read_without_importing_it(shelf):
    """Literals alone; what is computed is not there."""
    (shelf.folder / "told.py").write_text(
        'import no_such_module_at_all\n\nREADS = ("a", "b")\nMADE = len(READS)\n\nthing = None\n'
    )
    assert shelf.constant("told", "READS") == ("a", "b")
    with pytest.raises(KeyError):
        shelf.constant("told", "MADE")


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda c: c.noun)
def test_every_entry_loads_and_says_what_it_is_in_a_line(catalogue):
    """Each file has the catalogue's public thing, and a first line fit for a list."""
    assert len(catalogue.names()) >= 2
    for name in catalogue.names():
        assert callable(catalogue.load(name)) or catalogue is MEASURES, name
        summary = catalogue.summary(name)
        assert 20 < len(summary) <= 110, f"{name}: {summary!r}"
        assert summary.endswith((".", "?")), f"{name}: {summary!r}"


@pytest.mark.parametrize("catalogue", [MODELS, STRATEGIES, HARDWARE], ids=lambda c: c.noun)
def test_an_entry_goes_by_its_files_name(catalogue):
    """What is typed is what is told: a record's name is that of its file."""
    for name in catalogue.names():
        assert catalogue.load(name)().name == name
