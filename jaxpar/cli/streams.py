"""Standard output and error as a command meets them: closed, full, piped to `head`, or ASCII."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from jaxpar.core.errors import RequestError

READER_GONE = 128 + 13
"""The status of a program that wrote to a pipe which nobody reads any more, as shells tell it."""


_UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)
"""What the system says of an output that cannot be written."""


class OutputError(RequestError):
    """Standard output cannot be written."""


def prepare_streams() -> None:
    """Let standard streams that are closed lead nowhere, and others take every character.

    A file that is opened later would get a closed one's number, and be written to in its place.

    Raises:
        OutputError: for a closed standard output.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stdout is None:
        raise OutputError("standard output is closed: let it go to a file, or to /dev/null")


def _is_open(number: int) -> bool:
    """Whether a file descriptor is open."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


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
