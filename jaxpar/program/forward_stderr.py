"""A process that passes on what another writes to standard error, and keeps some of XLA's warnings.

`standard_error.py` starts it by path, as `python forward_stderr.py END OTHERS`, when XLA compiles,
so it imports no more than it needs. It is a process of its own because what the other one writes
before it aborts must still arrive.

Its standard input is what is written, its standard error is where that goes at once. The warnings
are kept until END is read, and then written to standard output, which is closed; if END never
comes, they are passed on like the rest.
"""

import os
import sys

KEPT = b"] [SPMD] Involuntary full rematerialization."
"""What XLA writes, after "W1125 21:01:24.844557   19527 spmd_partitioner.cc:656"."""

READY = b"."
"""Written to standard output first of all."""

AT_ONCE = 4096
"""Bytes that Linux writes to a pipe at once, nothing that others write coming between."""

MOST = 1 << 20
"""Bytes read at once: more than a pipe holds, so that what is written at once is read at once."""


def sift(text: bytes, others: frozenset[bytes]) -> tuple[bytes, bytes, bytes]:
    """Split a text into what is to be passed on, the warnings, and the unfinished last one.

    Args:
        text: whole lines, and perhaps the beginning of another.
        others: numbers of threads whose warnings are not kept.
    """
    if KEPT not in text:
        return text, b"", b""
    passed, kept = [], []
    for line in text.splitlines(keepends=True):
        at = warning_in(line, others)
        passed.append(line[:at])
        kept.append(line[at:])
    unfinished = b"" if kept[-1].endswith(b"\n") else kept.pop()
    return b"".join(passed), b"".join(kept), unfinished


def warning_in(line: bytes, others: frozenset[bytes]) -> int:
    """Where a warning begins in a line, perhaps after what another thread has begun to write.

    The line's length if none does.
    """
    head, found, _ = line.partition(KEPT)
    fields = head.rsplit(None, 3)
    if not found or len(fields) < 4:
        return len(line)
    level, _, thread, place = fields
    is_warning = level[-5:-4] == b"W" and level[-4:].isdigit() and thread.isdigit()
    if not is_warning or thread in others or not place.startswith(b"spmd_partitioner.cc:"):
        return len(line)
    return len(level) - 5


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
    kept, unfinished = b"", b""
    while data := os.read(0, MOST):
        before, ended, after = (unfinished + data).partition(end)
        passed, more, unfinished = sift(before, others)
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
