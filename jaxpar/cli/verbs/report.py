"""A page of records, one HTML file to look at and send: report before.json after.json runs/mine"""

from pathlib import Path

from jaxpar.cli.options import Options
from jaxpar.cli.pages import check_page, save_page
from jaxpar.cli.screen import Screen
from jaxpar.core.errors import RequestError, words_of
from jaxpar.report.records import read

TAKES = "RECORD ..."
READS = ("out",)


def verb(options: Options, screen: Screen) -> int:
    """Write the page; `--out` is its file, report.html if nothing is said."""
    page = check_page(options.out or "report.html", "--out")
    names = dict.fromkeys(options.words)
    records = [record for name in names for record in read(Path(name))]
    try:
        save_page(records, page, "--out")
    except RequestError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        # Files come from anywhere: one that has a record's names may hold anything under them.
        raise RequestError(
            f"{', '.join(names)}: not as jaxpar writes records ({words_of(error)}): name what "
            "--json printed"
        ) from error
    screen.say(f"page: {page}")
    screen.finish({"page": str(page), "records": len(records)})
    return 0
