"""What a person is shown: no figure is cut, whatever the width, and the words are the field's."""

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small import cpu, small_layout

from jaxpar.cli.screen import Screen
from jaxpar.cli.show.inspection import show_collectives, show_schedule
from jaxpar.cli.show.layout import show_layout
from jaxpar.cli.show.training import progress
from jaxpar.cli.tables import GAP, fold, table
from jaxpar.measures.inspect import inspect
from jaxpar.program.record import compile_step
from jaxpar.schedules import gpipe
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

FIGURE = r"\d[\d.,]*\d|\d"
figures = st.one_of(
    st.integers(0, 10**12).map(lambda n: f"{n:,}"),
    st.integers(0, 10**9).map(lambda n: f"{n / 1000:,.2f} MB"),
    st.lists(st.integers(1, 99_999), min_size=1, max_size=4).map(lambda s: " x ".join(map(str, s))),
)
texts = st.lists(
    st.sampled_from(["embed over data,", "layers/0/kernel", "all-reduce", "1,024 rows", "", "0.5"]),
    max_size=4,
).map(lambda words: " ".join(words).strip())


@st.composite
def tables(draw):
    kinds = draw(st.lists(st.sampled_from([figures, texts]), min_size=1, max_size=6))
    head = [f"column {i} of them" for i in range(len(kinds))]
    return head, draw(st.lists(st.tuples(*kinds), min_size=1, max_size=4))


@given(tables(), st.integers(10, 130))
def test_no_figure_is_cut_at_any_width(asked, width):
    """Every number of every cell is in a line, whole, and no line is wider than its words need."""
    head, rows = asked
    shown = table(head, rows, width)
    lines = (*shown.head, *shown.body)
    for row in rows:
        for number in re.findall(FIGURE, " ".join(row)):
            assert any(number in re.findall(FIGURE, line) for line in lines), (number, lines)
    words = [word for cell in (*head, *(c for row in rows for c in row)) for word in fold(cell, 1)]
    if shown.head:
        assert max(map(len, lines)) <= width
    else:
        # A row's first entry stands alone; others are folded to the width, where words let them.
        rest = [line for line in lines if line.startswith(GAP)]
        assert all(len(line) <= max(width, len(GAP) + max(map(len, words))) for line in rest)


@given(tables())
def test_a_table_that_fits_is_a_line_a_row(asked):
    """Columns are as wide as their cells, and nothing is folded."""
    head, rows = asked
    shown = table(head, rows, 1000)
    assert len(shown.head) == 1 and len(shown.body) == len(rows)
    for cells, line in zip(rows, shown.body, strict=True):
        assert [c for cell in cells for c in cell.split()] == line.split()


def test_heads_give_way_before_text_and_text_before_figures():
    """At the width of a pipe a table of collectives has a line a row."""
    head = ["collective", "over axes", "count per step", "bytes per device per step", "from"]
    row = ["collective-permute", "pipe", "1,024", "302.14 KB", "mlp.py:56 Network.__call__"]
    shown = table(head, [row], 80)
    assert len(shown.head) > 1 and len(shown.body) == 1
    narrower = table(head, [row], 64)
    assert narrower.head and len(narrower.body) == 2
    assert table(head, [row], 40).head == ()


class Page(Screen):
    """A screen of so many columns, and what was shown on it."""

    def __init__(self, width: int):
        super().__init__(as_json=False)
        self.file = io.StringIO()
        self.console = Console(file=self.file, width=width, highlight=False)

    @property
    def text(self) -> str:
        return self.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_an_inspection_is_shown_in_words_of_the_field(width):
    """Sharded, replicated, count per step, bytes per device per step; every count is there."""
    layout = small_layout("mlp", "fsdp", "data=4", width=64)
    found = inspect(compile_step(make_step(layout), hardware=cpu(), for_speed=False))
    page = Page(width)
    show_layout(page, layout, cpu())
    show_collectives(page, replace(found, faults=("unexpected collective: so it is",)))
    words = " ".join(page.text.split())
    assert "4 simulated CPU devices" in words and "replicated" in words
    assert "over data" in words and "unexpected collective" in words
    for row in found.collectives:
        assert re.search(rf"\b{row.count:,}\b", page.text)
    for array in layout.parameters.values():
        assert re.search(r"\b" + " x ".join(map(str, array.shape)) + r"$", page.text, re.M)


@pytest.mark.parametrize("width", [60, 80, 300])
def test_a_schedule_is_drawn_in_as_many_blocks_as_it_needs(width):
    """No tick is cut in two; those that are left out are counted."""
    plan = gpipe.schedule(4, 64)
    page = Page(width)
    layout = small_layout("mlp", "single", "data=1")
    show_schedule(page, replace(inspection_of(layout), schedule=plan))
    lines = page.text.splitlines()[1:]
    drawn = [line for line in lines if line.startswith("stage 0")]
    ticks = sum(len(re.findall(r"\.{4}|[ \[]+\d+[ \]]", line[len("stage 0 ") :])) for line in drawn)
    left = re.findall(r"and (\d+) more ticks", page.text)
    assert ticks + sum(map(int, left)) == plan.ticks
    assert all(len(line) <= width for line in lines)


def inspection_of(layout):
    return inspect(compile_step(make_step(layout), hardware=cpu(), for_speed=False))


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_bar_gives_way_to_the_figures_beside_it(width):
    """A long run at high speed has all of its figures; there is a bar where there is room."""
    page = Page(width)
    with progress(page, 100_000, "examples", 10**6) as watch:
        for step in (99_999, 100_000):
            watch(step, {"loss": 12.3456})
    words = " ".join(page.text.split())
    told = r"100000/100000 loss 12\.3456 [\d,]+\.\d steps/s [\d,]+ examples/s \d\.\d s$"
    assert re.search(told, words), page.text
    assert max(map(len, page.text.splitlines())) <= width
    assert ("━" in page.text) is (width == 200)


def test_the_layers_of_a_deep_network_share_a_row(monkeypatch):
    """Each parameter is in one row, and the counts of the rows are those of the parameters."""
    layout = small_layout("mlp", "fsdp", "data=4", width=64)
    whole, short = Page(80), Page(80)
    show_layout(whole, layout, cpu())
    monkeypatch.setattr("jaxpar.cli.show.layout.LONG", 2)
    show_layout(short, layout, cpu())
    assert "layers/1/kernel" in whole.text and "of them" not in whole.text
    rows = re.findall(r"^(layers\S*?)(?:, (\d+) of them)? ", short.text, re.M)
    assert sum(int(count or 1) for _, count in rows) == len(layout.parameters)
    assert len(rows) < len(layout.parameters) and all("*" in name for name, _ in rows)
