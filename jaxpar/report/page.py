"""The page: one HTML file of records, with all that it needs in it; it fetches nothing.

Records of several programs become one comparison, each program below it to open.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from jaxpar.core.figures import sizes_text
from jaxpar.report.charts import as_script, draw, javascript
from jaxpar.report.elements import Element, element, raw, render
from jaxpar.report.marks import legend
from jaxpar.report.section import Record, drawn

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
"""What a browser lets the page do: run its own script, and fetch nothing."""

AT_ONCE = 20
"""Programs of one record whose elements a browser reads as it opens the page; those of more wait
until somebody opens them, so that a page of 200 opens in under a second."""

TITLES = {
    "layout": "{model} under {strategy} on {mesh}",
    "inspect": "{model} under {strategy} on {mesh}",
    "verify": "{model} under {strategy} on {mesh}, held against one device",
    "train": "{model} trained under {strategy} on {mesh}",
    "compare": "{model}: {count} layouts compared",
    "run": "Experiment {experiment}",
    "diff": "What changed",
    "predict": "{model} under {strategy} on {mesh}: a step on {hardware}",
    "search": "The layouts of a search, ranked",
    "scale": "One layout on more and more devices",
}


def page(records: Sequence[Record]) -> str:
    """The page of some records, as HTML.

    Args:
        records: in today's form, at least one.

    Raises:
        RequestError: without the extra `report`.
    """
    shown = joined(records)
    articles = [_article(record) for record in shown]
    for article in articles:
        draw(article, stays_still=False)
    for article, record in zip(articles, shown, strict=True):
        inner = list(children(record))
        if inner:
            article.append(element("h2", "Each of them in full"))
            article.append(element("p", "Press one to see all that is known of it."))
        article.extend(_inner(*one, is_later=len(inner) > AT_ONCE) for one in inner)
    title = title_of(shown[0])
    root = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", title),
            raw("style", part("page.css")),
        ),
        element(
            "body",
            element("main", articles, class_="jaxpar"),
            element("footer", _foot(records), class_="jaxpar"),
            raw("script", javascript()),
            raw("script", part("page.js")),
            class_="page",
        ),
        lang="en",
    )
    return f"<!doctype html>\n{render(root)}\n"


def title_of(record: Record) -> str:
    """What a record is, in a line."""
    mesh = record.get("mesh")
    named = {
        "model": record.get("model", "a model"),
        "strategy": record.get("strategy"),
        "mesh": sizes_text(mesh) if isinstance(mesh, Mapping) else mesh,
        "experiment": record.get("experiment", ""),
        "hardware": record.get("hardware", ""),
        "count": len(record.get("layouts", ())),
    }
    if record.get("kind") == "train" and mesh is None:  # of its metrics alone
        return f"{named['model']}: metrics"
    return TITLES.get(record.get("kind", ""), "jaxpar").format(**named)


def children(record: Record) -> Iterator[tuple[str, Record]]:
    """The programs that a record holds, each by its name."""
    for layout in record.get("layouts", ()):
        if "refusal" not in layout:
            yield layout["layout"], layout
    for row in record.get("rows", ()):
        if "inspect" in row:
            mesh = sizes_text(row["mesh"]) if isinstance(row["mesh"], Mapping) else row["mesh"]
            verified = {"verified": row["verify"]} if "verify" in row else {}
            yield f"{row['model']} {row['strategy']} {mesh}", {**row["inspect"], **verified}


@cache
def part(name: str) -> str:
    """A file of the page that lies beside this one."""
    return files("jaxpar.report").joinpath(name).read_text(encoding="utf-8")


def joined(records: Sequence[Record]) -> list[Record]:
    """The same records, several of single programs made into one comparison at the front."""
    programs = [record for record in records if record.get("kind") == "inspect"]
    if len(programs) < 2:
        return list(records)
    layouts, used = [], set()
    for record in programs:
        name = f"{record['strategy']}@{sizes_text(record['mesh'])}"
        own = next(n for i in count(1) if (n := name if i == 1 else f"{name} ({i})") not in used)
        used.add(own)
        layouts.append({"layout": own, **record})
    models = list(dict.fromkeys(str(record["model"]) for record in programs))
    compared = {"kind": "compare", "model": ", ".join(models), "layouts": layouts}
    return [compared, *(r for r in records if r.get("kind") != "inspect")]


def _article(record: Record) -> Element:
    """One record: what it is, and all that the sections draw of it."""
    return element("article", element("h1", title_of(record)), legend(), drawn(record))


def _inner(name: str, record: Record, *, is_later: bool) -> Element:
    """A program inside another record, closed until somebody opens it; so are its charts.

    Args:
        name: of the program.
        record: its own.
        is_later: whether a browser reads its elements only then.
    """
    parts = drawn(record)
    if is_later:
        text = as_script("".join(map(render, parts)))
        parts = [raw("script", text, type="application/json", class_="later")]
    return element("details", element("summary", name), parts, class_="program")


def _foot(records: Sequence[Record]) -> list[Element]:
    """How every record was made."""
    lines = []
    for record in records:
        about: Mapping[str, Any] = record.get("about") or {}
        if not about:
            continue
        used = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        lines.append(
            element("p", element("code", about["command"]), f" at {about['made_at']} with {used}")
        )
    return lines or [element("p", "The record does not say how it was made.")]


def write(records: Sequence[Record], path: Path) -> None:
    """Write the page of some records to a file, all of it or nothing."""
    text = page(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8", errors="replace")
    beside.replace(path)
