"""Standard output and error as a command meets them: closed, full, piped to `head`, or ASCII."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, TextIO

from jaxpar.core.errors import RequestError

READER_GONE = 128 + 13
"""The status of a program that wrote to a pipe which nobody reads any more, as shells tell it."""


_UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)
"""What the system says of an output that cannot be written."""


class OutputError(RequestError):
    """Standard output cannot be written."""


def prepare_streams() -> None:
    """Let a standard error that is closed lead nowhere, and the streams take every character.

    Raises:
        OutputError: for a closed standard output.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stdout is None:
        raise OutputError("standard output is closed: let it go to a file, or to /dev/null")


class Courtesy:
    """A stream for words beside the record that was asked for: what cannot be written is left out.

    All else is the stream's own.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be; returns how many characters were given."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        with suppress(OSError):
            self._stream.flush()


@contextmanager
def written() -> Iterator[None]:
    """Within, what cannot be written raises BrokenPipeError or OutputError; at the end all is.

    Afterwards standard output leads nowhere if it could not be written, since Python writes what is
    left of it once more when it ends.
    """
    try:
        yield
        if not sys.stdout.closed:
            sys.stdout.flush()
    except ValueError as error:
        if isinstance(error, RequestError) or not sys.stdout.closed:
            raise
        raise OutputError("standard output was closed meanwhile, by the model perhaps") from error
    except OSError as error:
        # An error of a stream that is open already names no file.
        if error.filename is not None or error.errno not in _UNWRITTEN:
            raise
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            raise BrokenPipeError(*error.args) from None
        raise OutputError(
            f"cannot write to standard output ({error.strerror}): let it go elsewhere"
        ) from None
