"""Pages that a command saves: refused before the long work if they could not be, written whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpar.cli.options import check_writable
from jaxpar.core.errors import RequestError
from jaxpar.report.charts import library
from jaxpar.report.page import write


def check_page(page: str, option: str) -> Path:
    """Where a page is to go; refused now if it could not be drawn, or not be written there.

    Args:
        page: the file as typed.
        option: that named it.
    """
    path = Path(page)
    if path.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"{option} {page}: a page is HTML: name a file that ends in .html")
    check_writable(path, option)
    library()
    return path


def save_page(records: Sequence[Mapping[str, Any]], path: Path, option: str) -> None:
    """Write the page of some records."""
    try:
        write(records, path)
    except OSError as error:
        raise RequestError(f"{option} {path}: cannot write it ({error.strerror})") from error
