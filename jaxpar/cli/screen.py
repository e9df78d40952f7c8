"""Where a command's words go: lines and tables on the terminal, one record as JSON.

With `--json` standard output belongs to the record, so all else goes to standard error.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxpar.cli.tables import table

PICTURE_COLUMNS = 108


class _Console(Console):
    """rich's, which would end the process itself when nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        """Let the error that is being handled pass."""
        raise


class Screen:
    """What a person sees of a command, and the record that a program reads.

    Attributes:
        console: rich's, for what moves, such as a progress bar.
        files: what the command writes to disk, shown when it is stopped.
    """

    def __init__(self, as_json: bool, *, pictured: bool = False):
        width = PICTURE_COLUMNS if pictured else None
        self.console = _Console(stderr=as_json, highlight=False, record=pictured, width=width)
        self.files: list[Path] = []
        self._record_goes_to = sys.stdout if as_json else None

    @property
    def width(self) -> int:
        """Characters in a line; 80 in a pipe."""
        return self.console.width

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print a line, never cut: a terminal goes on in the next one."""
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows of cells under a head, no wider than the screen."""
        lines = table(head, rows, self.width)
        for line in lines.head:
            self.say(line, style="dim")
        for line in lines.body:
            self.say(line)

    def finish(self, record: dict) -> None:
        """Print the record, if it was asked for."""
        if self._record_goes_to is not None:
            print(json.dumps(_strict(record)), file=self._record_goes_to, flush=True)

    def picture(self, path: Path, title: str) -> None:
        """Save all that was shown as an SVG picture, for a page or a slide."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.console.save_svg(str(path), title=title)


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null says that there is no number."""
    if isinstance(value, dict):
        return {name: _strict(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
