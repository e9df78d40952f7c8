"""A page of records, one HTML file to look at and send: report before.json after.json runs/mine"""

from pathlib import Path

from jaxpar.cli.options import Options
from jaxpar.cli.pages import check_page, save_page
from jaxpar.cli.screen import Screen
from jaxpar.report.records import as_written, read

TAKES = "RECORD ..."
READS = ("out",)


def verb(options: Options, screen: Screen) -> int:
    """Write the page; `--out` is its file, report.html if nothing is said."""
    page = check_page(options.out or "report.html", "--out")
    names = dict.fromkeys(options.words)
    with as_written(names):
        records = [record for name in names for record in read(Path(name))]
        save_page(records, page, "--out")
    screen.say(f"page: {page}")
    screen.finish({"page": str(page), "records": len(records)})
    return 0
