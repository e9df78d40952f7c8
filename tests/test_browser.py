"""The page in headless Chromium: it opens without a complaint, sorts, and answers the pointer."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jaxpar.report.page import page
from jaxpar.report.records import read

SAVED = Path(__file__).parent / "records"
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

FIRST = """<script>
window.said = [];
for (const kind of ["error", "warn"]) console[kind] = (...all) => said.push(all.join(" "));
addEventListener("error", (event) => said.push(event.message));
addEventListener("unhandledrejection", (event) => said.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => said.push("policy: " + event.blockedURI));
</script>"""
"""Stands before all else, so that it hears what goes wrong."""

LAST = """<script>
addEventListener("load", async () => {
  const until = async (ready) => {
    for (let i = 0; i < 200 && !ready(); i++) await new Promise((done) => setTimeout(done, 20));
  };
  const column = (table, at) => [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
  const plots = () => [...document.querySelectorAll("main > article > section .plot")];
  await until(() => plots().every((plot) => plot.dataset.drawn === "moving"));
  const found = { plots: plots().length, moving: 0, wide: [], sorted: [] };
  found.moving = plots().filter((plot) => plot.dataset.drawn === "moving").length;
  found.still = document.querySelectorAll(".still").length;
  const table = document.querySelector("table.sorts");
  const heads = [...table.tHead.rows[0].cells];
  found.heads = heads.map((head) => head.querySelector("button").textContent);
  for (const at of heads.keys()) {
    const before = column(table, at).length;
    heads[at].querySelector("button").click();
    const rising = column(table, at);
    const sort = heads[at].getAttribute("aria-sort");
    heads[at].querySelector("button").click();
    found.sorted.push({ before, rising, sort, falling: column(table, at) });
  }
  const mark = document.querySelector(".mark-rect path, .mark-path path");
  if (mark) {
    const box = mark.getBoundingClientRect();
    const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true };
    for (const kind of ["pointermove", "mousemove", "mouseover", "pointerover"])
      mark.dispatchEvent(new MouseEvent(kind, at));
    const tip = () => document.querySelector("#vg-tooltip-element.visible");
    await until(tip);
    found.tip = tip() && tip().textContent;
  }
  const closed = [...document.querySelectorAll("details.program:not([open])")][0];
  if (closed) {
    closed.open = true;
    const inner = () => [...closed.querySelectorAll(".plot")];
    const moves = (plot) => plot.dataset.drawn === "moving";
    await until(() => inner().length && inner().every(moves));
    found.opened = closed.querySelectorAll(".vega-embed svg").length;
  }
  for (const one of document.querySelectorAll("body *:not(.wide *, .box *, svg *, details *)"))
    if (one.getBoundingClientRect().right > innerWidth + 1)
      found.wide.push(one.tagName + " " + one.className);
  found.said = said;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
});
</script>"""
"""Does what a person does, and writes what it saw into the page."""


@pytest.fixture(scope="module", autouse=True)
def tools():
    """A browser and the charts."""
    pytest.importorskip("vl_convert")
    if BROWSER is None:
        pytest.skip("needs Chromium: apt-get install chromium")


def seen(tmp_path, name: str, width: int) -> dict:
    """What the browser found on a page."""
    text = page(read(SAVED / f"{name}.json"))
    before, head, after = text.partition("<head>")
    body, end, rest = after.rpartition("</body>")
    assert head and end
    file = tmp_path / "page.html"
    file.write_text(f"{before}{head}{FIRST}{body}{LAST}{end}{rest}")
    assert BROWSER is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"]
    own = [f"--user-data-dir={tmp_path}/browser", f"--window-size={width},900"]
    done = subprocess.run(
        [BROWSER, *options, *own, "--dump-dom", f"file://{file}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (result,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout, re.S)
    return json.loads(result.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


DESKTOP, PHONE = 1200, 500
TRIED = [
    *((name, DESKTOP) for name in ("0-inspect-pipeline", "1-compare", "0-run", "0-train")),
    *((name, PHONE) for name in ("0-inspect-pipeline", "1-compare", "0-verify")),
]


@pytest.mark.parametrize(("name", "width"), TRIED)
def test_a_page_opens_sorts_and_answers_the_pointer(name, width, tmp_path):
    """No complaint, every chart moves, every column sorts both ways, nothing is wider than it."""
    found = seen(tmp_path, name, width)
    assert found["said"] == [] and found["wide"] == []
    assert found["moving"] == found["plots"] and found["still"] == 0
    assert (found["plots"] > 0) == (name != "0-verify")
    for column in found["sorted"]:
        assert column["sort"] == "ascending"
        assert len(column["rising"]) == column["before"]
        assert sorted(column["rising"]) == sorted(column["falling"])
    if found["plots"]:
        assert found["tip"], found
    if name in ("1-compare", "0-run"):
        assert found["opened"] >= 1


def test_programs_of_many_are_read_when_they_are_opened(tmp_path, monkeypatch):
    """Until then their elements are not there; then they are whole, and their charts move."""
    monkeypatch.setattr("jaxpar.report.page.AT_ONCE", 0)
    assert "<h2>The layout</h2>" not in page(read(SAVED / "1-compare.json"))
    found = seen(tmp_path, "1-compare", DESKTOP)
    assert found["said"] == [] and found["opened"] >= 1


def test_figures_sort_by_size_and_not_by_their_words(tmp_path):
    """The bytes of arrays, in KB and MB, rise and fall as numbers do; names as words."""
    units = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}

    def bytes_of(text: str) -> float:
        number, unit = text.split()
        return float(number.replace(",", "")) * units[unit]

    found = seen(tmp_path, "0-inspect-pipeline", DESKTOP)
    by_name = dict(zip(found["heads"], found["sorted"], strict=True))
    sizes = [bytes_of(text) for text in by_name["bytes"]["rising"]]
    assert len(set(sizes)) >= 3
    assert sizes == sorted(sizes)
    assert [bytes_of(text) for text in by_name["bytes"]["falling"]] == sizes[::-1]
