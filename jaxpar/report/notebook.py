"""What a notebook shows of a record: what a page does, still, and small enough to keep."""

from jaxpar.core.errors import RequestError
from jaxpar.report.charts import MISSING, draw
from jaxpar.report.elements import element, raw, render
from jaxpar.report.page import part, title_of
from jaxpar.report.section import Record, drawn


def notebook_html(record: Record) -> str:
    """A record as a piece of HTML that needs no script; without its charts where none are drawn."""
    root = element(
        "div",
        raw("style", part("page.css")),
        element("h3", title_of(record)),
        drawn(record),
        class_="jaxpar notebook",
    )
    try:
        draw(root, stays_still=True)
    except RequestError:  # the extra `report` is not installed: the tables are shown all the same
        for parent in list(root.iter()):
            for figure in parent.findall("figure[@class='chart']"):
                parent.remove(figure)
        root.append(element("p", MISSING, class_="quiet"))
    return render(root)
