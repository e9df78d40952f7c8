"""What a notebook shows of a record: what a page does, still, and small enough to keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxpar.core.errors import RequestError
from jaxpar.report.charts import MISSING, draw
from jaxpar.report.elements import element, raw, render
from jaxpar.report.page import joined, part, title_of, write
from jaxpar.report.records import stamped, upgraded
from jaxpar.report.section import Record, drawn


class Recorded(Protocol):
    """Whatever has a record, such as an Inspection, a Verdict or an Outcome."""

    def record(self) -> dict[str, Any]:
        """It as one JSON-ready dict."""
        ...


@dataclass(frozen=True, init=False)
class Page:
    """Records on one page, which a notebook shows and `save` writes; of several programs a table.

    Attributes:
        records: in today's form.
    """

    records: tuple[Record, ...]

    def __init__(self, *found: Recorded | Record):
        if not found:
            raise RequestError("Page() shows records: give an Inspection, or what --json printed")
        records = []
        for number, one in enumerate(found, 1):
            given = dict(one) if isinstance(one, Mapping) else one.record()
            record = upgraded(given, f"record {number}")
            if "about" not in record:
                record = stamped(record, record["kind"], "Python")
            records.append(record)
        object.__setattr__(self, "records", tuple(records))

    def save(self, path: str | Path) -> Path:
        """Write the page as one HTML file, and return where.

        Raises:
            RequestError: without the extra `report`.
        """
        write(self.records, Path(path))
        return Path(path)

    def __repr__(self) -> str:
        return f"<Page: {'; '.join(map(title_of, joined(self.records)))}>"

    def _repr_html_(self) -> str:
        return notebook_html(*joined(self.records))


def notebook_html(*records: Record) -> str:
    """Records as a piece of HTML that needs no script; without charts where none can be drawn."""
    shown = [(element("h3", title_of(record)), drawn(record)) for record in records]
    root = element("div", raw("style", part("page.css")), *shown, class_="jaxpar notebook")
    try:
        draw(root, stays_still=True)
    except RequestError:  # the extra `report` is not installed: the tables are shown all the same
        for parent in list(root.iter()):
            for figure in parent.findall("figure[@class='chart']"):
                parent.remove(figure)
        root.append(element("p", MISSING, class_="quiet"))
    return render(root)
