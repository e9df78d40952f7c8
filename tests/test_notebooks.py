"""The guided tour: every notebook runs from top to bottom, and what it keeps is small."""

import json
from pathlib import Path

import pytest
from small import needs_gpu_compiler

FOLDER = Path(__file__).parents[1] / "experiments/notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("1_first_layout", "2_any_flax_model")
"""Run at every change; the others, which compile or train more, are under the marker `claims`."""

MOST_BYTES = 150_000


def tried(book: Path):
    marks = [] if book.stem in QUICK else [pytest.mark.claims]
    if "h100" in book.read_text():
        marks.append(needs_gpu_compiler)
    return pytest.param(book, id=book.stem, marks=marks)


@pytest.mark.parametrize("book", [tried(book) for book in BOOKS])
def test_a_notebook_runs_and_gives_what_it_keeps(book):
    """In a kernel of its own: no cell fails, and each gives outputs of the kinds that it shows."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("vl_convert")
    kept = nbformat.read(book, as_version=4)
    fresh = nbformat.from_dict(json.loads(json.dumps(kept)))
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(fresh, timeout=300, kernel_name="python3").execute()
    assert [kinds(cell) for cell in fresh.cells] == [kinds(cell) for cell in kept.cells]


def kinds(cell):
    """What each output of a cell is."""
    return [(o.output_type, sorted(o.get("data", {}))) for o in cell.get("outputs", ())]


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_what_a_notebook_keeps_is_small_and_names_no_machine(book):
    """It begins with a heading, some cell draws, no line of code is too long to read."""
    saved = json.loads(book.read_text(encoding="utf-8"))
    assert book.stat().st_size < MOST_BYTES
    assert saved["cells"][0]["cell_type"] == "markdown" and saved["cells"][0]["source"][0][0] == "#"
    outputs = [o for cell in saved["cells"] for o in cell.get("outputs", ())]
    assert any("text/html" in o.get("data", {}) for o in outputs)
    assert not {"error"} & {o["output_type"] for o in outputs}
    assert not any(home in json.dumps(outputs) for home in ("/home/", "/root/", "/work/", "/tmp/"))


def test_the_tour_is_whole():
    """Five questions, in their order."""
    assert [book.stem[0] for book in BOOKS] == ["1", "2", "3", "4", "5"]
