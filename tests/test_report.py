"""The page of a record: all in one file, in it text of ours and of the record, escaped."""

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small import cpu, small_layout

import jaxpar
from jaxpar.cli.help import VERBS
from jaxpar.cli.main import execute
from jaxpar.core.catalogue import SCHEDULES
from jaxpar.core.errors import RequestError
from jaxpar.report import charts
from jaxpar.report.marks import MEANING
from jaxpar.report.page import page, part
from jaxpar.report.records import KINDS, read
from jaxpar.report.section import SECTIONS
from jaxpar.report.sections.timetable import _cells
from jaxpar.runtime.outcome import Outcome
from jaxpar.step.make_step import make_step

SAVED = Path(__file__).parent / "records"
FILES = sorted(SAVED.glob("[0-9]-*.json"))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<b>\x1b[31m\x00\u202e"


@pytest.fixture(scope="module", autouse=True)
def library():
    """Without charts there is no page."""
    pytest.importorskip("vl_convert")


class Tags(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "link", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def page_of(*names: str) -> Tags:
    return Tags(page([record for name in names for record in read(SAVED / f"{name}.json")]))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_page_is_whole_and_fetches_nothing(file):
    """Every element is closed; no address leads out; a browser is told to load nothing."""
    shown = page_of(file.stem)
    assert shown.open == []
    for _, attributes in shown.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes), attributes
    policies = [a["content"] for tag, a in shown.tags if "http-equiv" in a]
    assert len(policies) == 1 and policies[0].startswith("default-src 'none'")
    assert ("viewport", True) in {(a.get("name"), "content" in a) for _, a in shown.tags}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_column_of_figures_is_marked_and_so_is_every_chart(file):
    """Measured, predicted or quoted; a figure's cell has a unit's number to sort by."""
    root = page_of(file.stem)
    marks = [a["class"].split()[1] for tag, a in root.tags if tag == "abbr"]
    assert set(marks) <= set(MEANING) and len(marks) > len(MEANING)
    figures = [a for tag, a in root.tags if tag == "td" and a.get("class", "").startswith("figure")]
    assert any("data-value" in a for a in figures)
    drawn = sum(tag == "figure" and a.get("class") == "chart" for tag, a in root.tags)
    specs = sum(tag == "script" and a.get("type") == "application/json" for tag, a in root.tags)
    assert drawn == specs


def spoiled(value):
    """Every text of a record followed by what would be markup."""
    if isinstance(value, dict):
        return {name: spoiled(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [spoiled(entry) for entry in value]
    return value + HOSTILE if isinstance(value, str) else value


KEPT = ("kind", "schema", "table", "curve")
"""What jaxpar itself chooses, which a page reads as words of its own."""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_nothing_that_a_person_named_becomes_markup(file):
    """The page of a record of hostile names has elements of the harmless one, and no others."""
    (record,) = read(file)
    hostile = {n: v if n in KEPT else spoiled(v) for n, v in record.items()}
    harmless, shown = Tags(page([record])), Tags(page([hostile]))
    assert {tag for tag, _ in shown.tags} <= {"wbr", "tspan", *(tag for tag, _ in harmless.tags)}
    for _, attributes in shown.tags:
        assert not [name for name in attributes if name.startswith("on")]
    scripts = sum(tag == "script" and "type" not in a for tag, a in shown.tags)
    assert scripts == 2
    assert "<img src=x" in "".join(shown.text)
    assert not re.search("[\x00\x1b\u202e]", "".join(shown.text))


def test_a_script_cannot_be_ended_by_what_it_holds():
    """JSON is the same value after it was made safe."""
    value = {"name": HOSTILE + "<!--"}
    text = charts.as_script(value)
    assert json.loads(text) == value and not re.search("[<>&]", text)


def test_every_section_draws_something_of_some_record_and_nothing_of_none():
    """A new section meets this at once."""
    records = [record for file in FILES for record in read(file)]
    inner = [one for record in records for one in record.get("layouts", ())]
    assert {name for name in SECTIONS.names() if SECTIONS.load(name).draw({})} == set()
    silent = {
        name
        for name in SECTIONS.names()
        if not any(SECTIONS.load(name).draw(record) for record in (*records, *inner))
    }
    assert silent <= {"difference"}


def test_a_refused_layout_is_named_with_its_sentence():
    """Those that could not be laid out are in no table, and their reason is whole."""
    (record,) = read(SAVED / "0-compare.json")
    refused = [one for one in record["layouts"] if "refusal" in one]
    text = "".join(page_of("0-compare").text)
    assert refused and all(one["refusal"] in text for one in refused)
    only = {**record, "layouts": refused}
    assert refused[0]["refusal"] in "".join(Tags(page([only])).text)


def test_several_programs_become_one_comparison():
    """One table over all, each program below it, and other records behind."""
    shown = page_of("0-inspect", "0-inspect-pipeline", "0-inspect", "0-verify")
    text = "".join(shown.text)
    assert "3 layouts compared" in text and "hybrid@data=4,model=2 (2)" in text
    programs = [a for tag, a in shown.tags if tag == "details" and a.get("class") == "program"]
    assert len(programs) == 3 and "equals one device" in text


@pytest.mark.parametrize("name", SCHEDULES.names())
def test_a_timetable_shows_every_pass_where_it_is(name):
    """As the schedule itself has it, with more than ten microbatches."""
    chunks = 2 if name == "interleaved" else 1
    schedule = SCHEDULES.load(name)(stages=4, microbatches=12, chunks=chunks)
    record = {
        "microbatches": schedule.microbatches,
        "stages": schedule.stages,
        "table": schedule.picture().splitlines(),
    }
    drawn = {(c["tick"], c["stage"], c["microbatch"], c["pass"]) for c in _cells(record)}
    assert drawn == {
        (tick, stage, work.microbatch, "forward" if work.forward else "backward")
        for tick, row in enumerate(schedule.table)
        for stage, work in enumerate(row)
        if work is not None
    }


def test_without_the_extra_a_page_is_refused_and_a_notebook_has_its_tables(monkeypatch, tmp_path):
    """One sentence says what to install."""
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    charts.library.cache_clear()
    layout = small_layout("mlp", "tensor", "model=2")
    text = jaxpar.inspect(jaxpar.compile_step(make_step(layout), hardware=cpu()))._repr_html_()
    assert charts.MISSING in text.replace("&quot;", '"') and "Collectives of one step" in text
    with pytest.raises(RequestError, match=r"jaxpar\[report\]"):
        page(read(SAVED / "0-compare.json"))
    charts.library.cache_clear()


def test_values_say_what_they_are_in_a_line_and_draw_themselves():
    """A notebook's last line: the model, its layout, step and program, and what was found."""
    layout = small_layout("mlp", "tensor", "model=2")
    step = make_step(layout)
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    verdict = jaxpar.verify(layout, hardware=cpu())
    outcome = Outcome(3, 1.5, 2.0, 8.0, "rows", {"loss": 2.0}, {"loss": 1.0}, {}, None)  # pyright: ignore[reportArgumentType]
    found = jaxpar.inspect(program)
    for value in (layout.model, layout, step, program, found, verdict, outcome):
        line = repr(value)
        assert "\n" not in line and 20 < len(line) < 200, line
    assert layout.model.name in repr(layout.model) and "model=2" in repr(program)
    assert "ok" in repr(verdict) and "loss 1.0000" in repr(outcome)
    for value in (layout, step, program, found, verdict, outcome):
        drawn = Tags(value._repr_html_())
        assert drawn.open == [] and "script" not in {tag for tag, _ in drawn.tags}
        assert any(tag == "td" for tag, _ in drawn.tags)


def test_the_style_of_what_a_notebook_shows_reaches_nothing_else_there():
    """Every rule is of elements inside it, or of a page's own body."""
    rules = re.sub(r"@media[^{]*\{(.*)\}", r"\1", part("page.css"))
    heads = [head for rule in re.findall(r"([^{}]+)\{[^{}]*\}", rules) for head in rule.split(",")]
    assert len(heads) > 40
    own = (".jaxpar", "footer.jaxpar", "body.page", ".vega-embed", "#vg-tooltip-element")
    assert [head for head in heads if not head.strip().startswith(own)] == []


def run(words, capsys):
    status = execute([*words, "--json"], program="jaxpar")
    told = capsys.readouterr()
    return status, json.loads(told.out) if status < 2 else None, told.err


def test_a_verb_writes_its_page_and_the_record_makes_the_same_page(capsys, tmp_path):
    """`inspect --report`, and `report` of what `inspect --json` printed."""
    at = str(tmp_path / "new" / "page.html")
    words = ["inspect", "mlp", "--strategy", "data", "--mesh", "data=2", "--report", at]
    status, record, _ = run(words, capsys)
    assert status == 0 and record is not None and record["kind"] == "inspect"
    (tmp_path / "one.json").write_text(json.dumps(record))
    again = str(tmp_path / "again.html")
    status, made, _ = run(["report", str(tmp_path / "one.json"), "--out", again], capsys)
    assert status == 0 and made is not None and made["page"] == again
    assert Path(again).read_text() == Path(at).read_text()
    assert "jaxpar inspect mlp" in Path(at).read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.html", "new", "one.json"]


def test_every_verb_whose_record_a_page_draws_writes_one():
    """And `report` reads what each of them printed."""
    assert {name for name in VERBS.names() if "report" in VERBS.constant(name, "READS")} == {
        *KINDS,
        "diff",
    }


def test_two_layouts_are_compiled_and_held_against_each_other(capsys, tmp_path):
    """`diff MODEL LAYOUT LAYOUT`: what came and what went, and its page."""
    at = str(tmp_path / "page.html")
    words = ["diff", "mlp", "data@data=2", "tensor@model=2", "--report", at]
    status, record, _ = run(words, capsys)
    assert status == 0 and record is not None and not record["same"]
    changes = {(c["change"], *c["axes"]) for c in record["pairs"][0]["collectives"]}
    assert changes == {("gone", "data"), ("added", "model")}
    assert "Collectives added, gone and changed" in Path(at).read_text()


REFUSED = [
    ["inspect", "mlp", "--report", "page.txt"],
    ["list", "--report", "page.html"],
    ["report", "nowhere.json"],
    ["report", "pyproject.toml", "--out", "page.html"],
    ["diff", "nowhere.json", "there.json"],
    ["diff", "mlp", "data@data=2", "data@data=2"],
    ["diff", "mlp", "data@data=2", "data@data=7"],
    ["diff", "one.json"],
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_cannot_be_shown_is_refused_in_a_sentence(words, capsys, tmp_path, monkeypatch):
    """Nothing is written, and nothing is compiled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    status, _, said = run(words, capsys)
    assert status == 2 and said.count("\n") == 1, said
    assert [p.name for p in tmp_path.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("name", ["arrays", "collectives", "memory", "work", "schedule", "dims"])
@pytest.mark.parametrize("value", [7, "text", [[]], {"a": None}, [None]])
def test_a_record_that_was_tampered_with_is_no_traceback(name, value, capsys, tmp_path):
    """It is drawn, or refused in a sentence that names the file."""
    (record,) = read(SAVED / "0-inspect-pipeline.json")
    (tmp_path / "odd.json").write_text(json.dumps({**record, name: value}))
    words = ["report", str(tmp_path / "odd.json"), "--out", str(tmp_path / "page.html")]
    status, _, said = run(words, capsys)
    assert status in (0, 2)
    assert status == 0 or ("odd.json" in said and said.count("\n") == 1)
    assert (tmp_path / "page.html").exists() == (status == 0)
    whole = str(SAVED / "0-inspect-pipeline.json")
    status, _, said = run(["diff", whole, str(tmp_path / "odd.json")], capsys)
    assert status == 0 or (status == 2 and "odd.json" in said and said.count("\n") == 1)


EXPLAINED = {
    "collectives": [
        {"kind": "all-gather", "axes": ["data"], "bytes": 2048, "count": 2, "phase": "forward",
         "what": "weight blocks/down", "module": "blocks/*", "source": "/home/me/net.py:222",
         "reason": "its shards are gathered before use", "overlapped": True, "crosses_nodes": True},
        {"kind": "all-reduce", "axes": ["model"], "bytes": 512, "count": 1, "phase": "update",
         "what": "activation", "module": "", "source": "", "reason": "", "overlapped": False,
         "crosses_nodes": False},
    ],
    "unattributed_share": 0.2,
    "bytes_per_step_by_phase": {"forward": 2048, "update": 512},
    "bytes_per_step_by_module": {"blocks/*": 2048, "unknown": 512},
    "findings": [{"kind": "partial sum", "sentence": "net.py:7: a sum is never reduced"}],
    "memory": {
        "parts": {"parameters": 100, "saved activations": 50},
        "peak_bytes": 150,
        "xla_peak_bytes": 149,
        "curve_parts": ["parameters", "saved activations"],
        "curve": [[0, 100, 0], [5, 100, 50], [9, 100, 0]],
        "loops": [{"begin": 3, "end": 6, "times": 4}],
        "largest": [{"part": "parameters", "bytes": 100, "what": "up", "source": "net.py:3"}],
        "peak_by_module": {"blocks/*": 150},
    },
}  # fmt: skip
"""What a record of a program whose collectives and memory are explained has beside the rest."""


def test_an_explained_program_shows_its_reasons_and_its_memory_over_time():
    """Whatever a record tells of a collective and of the peak is on its page."""
    (record,) = read(SAVED / "0-inspect.json")
    shown = Tags(page([{**record, **EXPLAINED}]))
    text = " ".join("".join(shown.text).split())
    for said in (
        "all-gather of weight blocks/down",
        "its shards are gathered before use blocks/*, net.py:222",
        "20.00% measured of the bytes have no line or reason",
        "a sum is never reduced",
        "One device needs 150 B: parameters 100 B, saved activations 50 B",
        "Places 3 to 6 are a loop, run 4 times",
        "XLA's own figure of the peak is 149 B measured, +0.67% from this",
        "the largest values at the peak",
        "memory over the schedule of one step",
    ):
        assert said in text, said
    titles = [a.get("aria-label") for tag, a in shown.tags if a.get("role") == "img"]
    assert "bytes per device per step, by the phase that they are in" in titles


def test_a_comparison_begins_with_what_it_comes_to():
    """Which layouts can be used, and which of them needs least, each by its name."""
    (record,) = read(SAVED / "2-compare.json")
    text = "".join(page_of("2-compare").text)
    made = [one for one in record["layouts"] if "refusal" not in one]
    least = min(made, key=lambda one: one["memory"]["total_bytes"])
    assert "All of them can be used" in text and "8 x h100, 64 rows a step" in text
    assert f"{least['layout']} needs the least memory" in text
    made[0]["memory"]["fits"] = False
    made[1]["ok"] = False
    said = "".join(Tags(page([record])).text)
    assert "1 of 3 can be used: 1 would not fit into a device's memory and 1 would not do" in said


def test_a_prediction_draws_its_step_over_time():
    """Each stretch of each track is in the chart; together they cover all that is predicted."""
    (record,) = read(SAVED / "2-predict.json")
    (spec,) = [s for s in specs_of(page([record])) if "x2" in s.get("encoding", {})]
    values, stretches = spec["data"]["values"], record["timeline"]
    assert len(values) == len(stretches) > 10
    assert {value["track"] for value in values} == {"computes", "communicates"}
    end = max(start + seconds for _, _, start, seconds, _ in stretches)
    assert end == pytest.approx(record["step_seconds"], rel=0.01)
    for track in ("compute", "communication"):
        own = [(start, start + seconds) for on, _, start, seconds, _ in stretches if on == track]
        assert all(a[1] <= b[0] + 1e-9 for a, b in zip(own, own[1:], strict=False))


def test_times_that_may_pass_at_once_are_not_put_end_to_end():
    """The longest bar of a layout is what its column says that a step takes at least."""
    (record,) = read(SAVED / "2-compare.json")
    bound = record["layouts"][0]["bounds"]
    assert min(bound["compute_seconds"], bound["link_seconds"]) > 0
    (spec,) = [s for s in specs_of(page([record])) if "yOffset" in s.get("encoding", {})]
    sums: dict[str, float] = {}
    for value in spec["data"]["values"]:
        if value["name"] == record["layouts"][0]["layout"]:
            sums[value["track"]] = sums.get(value["track"], 0.0) + value["size"]
    assert len(sums) > 1 and max(sums.values()) == pytest.approx(bound["step_seconds"])


def test_names_and_legends_of_charts_go_on_in_the_next_line_where_they_are_long():
    """A layout with what was changed of it, and parts of many words, are cut nowhere."""
    name = "replica+fsdp@replica=2,data=2@remat=minimal@microbatches=1"
    parts = ["products of matrices", "what touches memory", "slowed down by collectives"]
    values = [{"name": n, "size": 1.0, "told": "1 s", "part": part}
              for n in (name, "data@data=4") for part in parts]  # fmt: skip
    long = charts.bars(values, unit="seconds", colour="part", order=parts)
    short = charts.bars(values[3:], unit="seconds", colour="part", order=parts)
    assert "split" in long["encoding"]["y"]["axis"]["labelExpr"]
    assert long["height"] >= 2 * 4 * 15
    columns = [one["encoding"]["color"]["legend"]["columns"] for one in (long, short)]
    assert columns[0] < 3 <= columns[1]
    svg = charts.library().vegalite_to_svg({**long, "config": charts.CONFIG, "width": charts.WIDTH})
    assert "…" not in svg and "microbatches=1" in svg


def test_backticks_of_a_sentence_are_code_on_a_page():
    """What a person reads in a terminal between backticks stands there as code."""
    (record,) = read(SAVED / "2-inspect.json")
    shown = Tags(page([record]))
    assert "`" not in "".join(shown.text) and any(tag == "code" for tag, _ in shown.tags)


def test_axes_of_bytes_and_of_seconds_have_their_unit():
    """No axis says 1.4M, or 0.000525."""
    for file in ("1-search", "2-inspect"):
        for spec in specs_of(page(read(SAVED / f"{file}.json"))):
            assert '"~s"' not in json.dumps(spec)


def specs_of(text: str) -> list[dict]:
    """The charts' descriptions on a page."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)
    return [json.loads(one) for one in found]
