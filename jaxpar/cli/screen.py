"""Where a command's words go: lines and tables on the terminal, one record as JSON.

With `--json` standard output belongs to the record, so all else goes to standard error.
"""

import atexit
import io
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxpar.cli.streams import Courtesy
from jaxpar.cli.tables import table
from jaxpar.core.errors import visible

PICTURE_COLUMNS = 108
SECONDS_UNSAID = 3.0
"""How long something may take before a line says what it is, where nothing can move."""


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
        faults: what was said in red.
        record: what a program reads of the command; None until the command has come to its end.
    """

    def __init__(self, as_json: bool, *, pictured: bool = False, silent: bool = False):
        width = PICTURE_COLUMNS if pictured else None
        beside: Any = Courtesy(sys.stderr) if as_json or silent else None
        self.console = _Console(
            file=beside, highlight=False, record=pictured, width=width, quiet=silent
        )
        self.files: list[Path] = []
        self.faults: list[str] = []
        # A process that another one speaks for leaves standard output to that one's record.
        self._as_json, self._pictured, self._silent = as_json or silent, pictured, silent
        self.record: dict[str, Any] | None = None

    @property
    def width(self) -> int:
        """Characters in a line; 80 in a pipe."""
        return self.console.width

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within, with `--json`, nothing but the record reaches standard output.

        Whatever else is printed goes to standard error: by Python, by other languages and other
        processes to descriptor 1, and by what is still to run when the process ends. The record
        follows at the end, if there is one.
        """
        if not self._as_json:
            yield
            return
        with ExitStack() as closing:
            out = closing.enter_context(_kept_apart())
            with redirect_stdout(self.console.file):
                yield
            if self.record is not None and not self._silent:
                print(json.dumps(self.record), file=out, flush=True)

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print lines, never cut: a terminal goes on in the next one, and so does a picture.

        Names come from anywhere, so what a terminal would obey is shown instead.
        """
        if style == "red":
            self.faults.append(text)
        text = "\n".join(map(visible, text.split("\n")))
        self.console.print(text, style=style, markup=False, soft_wrap=not self._pictured)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say what takes a while: with the time that it takes on a terminal, else in a line.

        The line comes after some seconds only, so that what is refused at once is all that is said.
        """
        what = visible(what)
        if self.console.is_interactive and not self._pictured:
            columns = (
                SpinnerColumn("line"),
                TextColumn("{task.description}", markup=False),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                progress.add_task(what, total=None)
                yield
            return
        if self._as_json or self._pictured:
            yield
            return
        late = threading.Timer(SECONDS_UNSAID, self.say, (f"{what} ...", "dim"))
        late.daemon = True
        late.start()
        try:
            yield
        finally:
            late.cancel()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows of cells under a head, no wider than the screen."""
        lines = table(head, rows, self.width)
        for line in lines.head:
            self.say(line, style="dim")
        for line in lines.body:
            self.say(line)

    def finish(self, record: dict) -> None:
        """Keep the record, for `alone` to print if it was asked for."""
        self.record = record

    def picture(self, path: Path, title: str) -> None:
        """Save all that was shown as an SVG picture, for a page or a slide."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.console.save_svg(str(path), title=title)


@contextmanager
def _kept_apart() -> Iterator[TextIO]:
    """A stream to standard output, whose descriptor is standard error's meanwhile."""
    out = sys.stdout
    try:
        own = out.fileno()
        out.flush()
        saved = os.dup(own)
    except (AttributeError, OSError, io.UnsupportedOperation):
        yield out  # no file: only what Python prints could reach it
        return
    with open(saved, "w", encoding=out.encoding, errors=out.errors) as apart:
        os.dup2(2, own)
        try:
            yield apart
        finally:
            out.flush()
            os.dup2(saved, own)
            # What was registered before runs after this.
            atexit.register(_to_standard_error, own)


def _to_standard_error(descriptor: int) -> None:
    """Let what is still written to a descriptor go to standard error."""
    sys.stdout.flush()
    os.dup2(2, descriptor)
