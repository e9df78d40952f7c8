"""Standard error while XLA compiles: it arrives at once, but for warnings that are told otherwise.

XLA writes to file descriptor 2 from C++, and so may any other thread. For the time of a compilation
the descriptor is a pipe to a process that passes everything on as it comes, in order, except some
lines of XLA's log (`forward_stderr.KEPT`), which the compilation gets. A process and no thread, so
that what XLA writes before it aborts arrives too.
"""

import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from jaxpar.core.errors import RequestError
from jaxpar.program import forward_stderr

REAP_SECONDS = 0.5
"""How long to wait for the process to end; it does at once, unless others still write to it."""

_turn = threading.RLock()
"""Of the thread that compiles: one at a time, since a warning does not always say whose it is."""


@contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """Within, what XLA logs and we tell otherwise does not appear on standard error.

    Yields a list which has it, one a line, once the block has ended without an error. After an
    abort, or an error that is no RequestError, it appears like the rest. Nothing is kept where
    there is no standard error, or no process can be started.

    In JAX 0.10 XLA warns from a thread of its own when it compiles for the CPU, so a warning about
    what another thread compiles meanwhile without this is taken for one of this thread's.
    """
    lines: list[str] = []
    with _turn, ExitStack() as closing:
        forwarder = _started(closing)
        if forwarder is None:
            yield lines
            return
        try:
            os.dup2(forwarder.pipe, 2)
            yield lines
            # First, so that what is written directly overtakes next to nothing that is on its way.
            lines += forwarder.kept()
        except RequestError:
            forwarder.kept()  # which is what the sentence is about
            raise
        finally:
            os.dup2(forwarder.stderr, 2)


@dataclass(frozen=True)
class _Forwarder:
    """The process that passes lines on to standard error.

    Attributes:
        process: it.
        answer: what it writes, to be read here.
        pipe: where to write what it reads.
        stderr: the standard error that it passes on to.
        end: what ends its keeping of lines.
    """

    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    pipe: int
    stderr: int
    end: bytes

    def kept(self) -> list[str]:
        """Those lines, once all that was written before has been passed on."""
        with suppress(BrokenPipeError):  # somebody has ended the process
            os.write(self.pipe, self.end)
        return self.answer.read().decode(errors="replace").splitlines()

    def reap(self) -> None:
        """Wait for the process, its pipe being closed."""
        self.answer.close()
        try:
            self.process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:
            # A process that was started meanwhile has the pipe as its standard error.
            threading.Thread(target=self.process.wait, daemon=True).start()


def _started(closing: ExitStack) -> _Forwarder | None:
    """A process that passes on until `closing` ends it; None where there can be none."""
    try:
        stderr = os.dup(2)
    except OSError:
        return None
    closing.callback(os.close, stderr)
    reading, pipe = os.pipe()
    end = secrets.token_hex(16)
    others = [str(t.native_id) for t in threading.enumerate() if t != threading.current_thread()]
    program = [sys.executable, "-S", "-P", forward_stderr.__file__, end, ",".join(others)]
    try:
        process = subprocess.Popen(
            program,
            stdin=reading,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is not for it
        )
    except OSError:
        os.close(pipe)
        return None
    finally:
        os.close(reading)
    assert process.stdout is not None  # it was asked for
    forwarder = _Forwarder(process, process.stdout, pipe, stderr, end.encode())
    closing.callback(forwarder.reap)
    closing.callback(os.close, pipe)
    is_ready = forwarder.answer.read(1) == forward_stderr.READY
    return forwarder if is_ready else None
