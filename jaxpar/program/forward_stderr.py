"""A process that passes on what another writes to standard error, and keeps some of XLA's log.

`standard_error.py` starts it by path, as `python forward_stderr.py END OTHERS`, when XLA compiles,
so it imports no more than it needs. It is a process of its own because what the other one writes
before it aborts must still arrive.

Its standard input is what is written, its standard error is where that goes at once. What is
kept is kept until END is read, and then written to standard output, which is closed; if END never
comes, it is passed on like the rest.
"""

import os
import sys

KEPT = {
    b"spmd_partitioner.cc": b"[SPMD] Involuntary full rematerialization.",
    b"gpu_hlo_schedule.cc": b"The byte size of input/output arguments",
    b"hlo_rematerialization.cc": b"Can't reduce memory use below",
    b"status_macros.cc": b"",
}
"""File -> how what it writes begins, after "W1125 21:01:24.844557   19527 file.cc:656] ".

What is replicated to be sharded otherwise, what does not fit the memory of a described GPU, what
XLA refuses: all are told in words of our own.
"""

TRACE = (
    b"=== Source Location Trace",  # this and the next since jax 0.12
    b"external/",
    b"*** Begin stack trace ***",
    b"*** End stack trace ***",
    b"\t",
    b"\n",
)
"""How the lines begin that XLA writes after what it refuses."""

READY = b"."
"""Written to standard output first of all."""

AT_ONCE = 4096
"""Bytes that Linux writes to a pipe at once, nothing that others write coming between."""

MOST = 1 << 20
"""Bytes read at once: more than a pipe holds, so that what is written at once is read at once."""


class Sieve:
    """What tells XLA's lines that are kept from all others.

    Args:
        others: numbers of threads whose lines are not kept.
    """

    def __init__(self, others: frozenset[bytes]):
        self._others = others
        self._in_trace = False

    def sift(self, text: bytes) -> tuple[bytes, bytes, bytes]:
        """Split a text into what is to be passed on, what is kept, and the unfinished last of it.

        Args:
            text: whole lines, and perhaps the beginning of another.
        """
        if not text or not (self._in_trace or any(file in text for file in KEPT)):
            return text, b"", b""
        passed, kept = [], []
        for line in text.splitlines(keepends=True):
            if self._in_trace and not line.endswith(b"\n"):
                kept.append(line)  # what it is shows when all of it is there
                break
            at = self._kept_from(line)
            passed.append(line[:at])
            kept.append(line[at:])
        unfinished = b"" if kept[-1].endswith(b"\n") else kept.pop()
        return b"".join(passed), b"".join(kept), unfinished

    def _kept_from(self, line: bytes) -> int:
        """Where what is kept begins in a line: 0 within a trace, its length if nothing does."""
        if self._in_trace and line.startswith(TRACE):
            return 0
        at = log_line_in(line, self._others)
        self._in_trace = at < len(line) and line.endswith(b"\n") and b"status_macros.cc" in line
        return at


def log_line_in(line: bytes, others: frozenset[bytes]) -> int:
    """Where a line of XLA's that is kept begins, perhaps after what another thread has begun.

    The line's length if none does.
    """
    for file, words in KEPT.items():
        head, found, rest = line.partition(file + b":")
        fields = head.rsplit(None, 2)
        if not found or len(fields) < 3 or not head.endswith(b" "):
            continue
        level, _, thread = fields
        number, _, said = rest.partition(b"] ")
        is_log = level[-5:-4] in b"WE" and level[-4:].isdigit() and thread.isdigit()
        if is_log and number.isdigit() and thread not in others and said.startswith(words):
            return len(level) - 5
    return len(line)


def write(text: bytes, to: int) -> None:
    """Write all of a text, for as long as somebody reads; others may write between its lines."""
    start = 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + AT_ONCE) + 1 or start + AT_ONCE
        try:
            start += os.write(to, text[start:end])
        except BlockingIOError:  # a terminal that another program has made so
            import select

            select.select([], [to], [])
        except OSError:  # nobody reads it any more
            return


def forward(end: bytes, others: frozenset[bytes]) -> None:
    """Pass standard input on to standard error until its end, as described above."""
    write(READY, to=1)
    sieve = Sieve(others)
    kept, unfinished = b"", b""
    while data := os.read(0, MOST):
        before, ended, after = (unfinished + data).partition(end)
        passed, more, unfinished = sieve.sift(before)
        write(passed, to=2)
        kept += more
        if ended:
            write(kept + unfinished, to=1)
            os.close(1)
            kept, unfinished = b"", b""
            write(after, to=2)
            break
    write(kept + unfinished, to=2)
    # Processes that were started meanwhile may write to the same pipe for as long as they live.
    while data := os.read(0, MOST):
        write(data, to=2)


if __name__ == "__main__":
    forward(sys.argv[1].encode(), frozenset(sys.argv[2].encode().split(b",")))
    os._exit(0)
