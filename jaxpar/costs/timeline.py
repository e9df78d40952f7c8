"""A replay as a trace that Perfetto and Chrome open: streams as tracks, loops turn by turn.

The format is Chrome's "Trace Event Format": complete events (`ph` "X"), times in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxpar.costs.replay import COMMUNICATION, COMPUTE, Replay, Slice

MOST_EVENTS = 200_000
"""A trace with more is slow to open: loops beyond it are drawn by their first turns."""

MOST_STRETCHES = 1000
"""Stretches that a track is drawn with, about: a thousandth of a step is not seen on a page."""

MICRO = 1e6
TRACKS = {COMPUTE: 1, COMMUNICATION: 2}

About = Callable[[Slice], Mapping[str, Any]]
"""What is shown of a slice when one clicks on it, beside its sizes."""


def trace(name: str, replay: Replay, about: About) -> dict[str, Any]:
    """One step as a trace, a JSON-ready dict.

    Args:
        name: of what is shown, such as the model and its layout.
        replay: of the whole program.
        about: (slice) -> module, source line and the like, by name.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": name}},
        *(
            {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": stream}}
            for stream, tid in TRACKS.items()
        ),
    ]
    for start, share, one in _laid_out(replay, 0.0):
        if len(events) >= MOST_EVENTS:
            break
        more = {name: value for name, value in about(one).items() if value}
        sizes = {"bytes": one.bytes, "flops": one.flops}
        events.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": TRACKS[one.stream],
                "name": str(more.get("module") or one.name),
                "cat": one.kind,
                "ts": start * MICRO,
                "dur": one.seconds * share * MICRO,
                "args": {"instruction": one.name, **more, **{k: v for k, v in sizes.items() if v}},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def tracks(replay: Replay, about: Callable[[Slice], tuple[str, str]]) -> list[list[Any]]:
    """One step as few stretches, to be drawn: [track, what, start seconds, seconds, name].

    What one track does alike, one after the other, is one stretch; what is too short to be seen is
    part of the one before it.

    Args:
        replay: of the whole program.
        about: (slice) -> (what it does, its name).
    """
    least = replay.seconds / MOST_STRETCHES
    last: dict[str, list[Any]] = {}
    made: list[list[Any]] = []
    for start, share, one in _laid_out(replay, 0.0):
        what, name = about(one)
        seconds = one.seconds * share
        before = last.get(one.stream)
        end = before[2] + before[3] if before else -1.0
        is_near = before is not None and start - end < least
        if before and is_near and (before[1] == what or seconds < least):
            before[3] = max(before[3], start + seconds - before[2])
            continue
        last[one.stream] = [one.stream, what, start, seconds, name]
        made.append(last[one.stream])
    return made


def _laid_out(
    replay: Replay, start: float, share: float = 1.0
) -> Iterator[tuple[float, float, Slice]]:
    """(start, share of its seconds, slice) of every run of every part, in order of starts."""
    own = [(one.start_seconds, one) for one in replay.slices]
    inner = [(part.start_seconds, part) for part in replay.parts]
    for at, one in sorted([*own, *inner], key=lambda pair: pair[0]):
        if isinstance(one, Slice):
            yield start + share * at, share, one
            continue
        each = share * one.share
        for turn in range(int(one.times)):
            begun = start + share * at + turn * each * one.replay.seconds
            yield from _laid_out(one.replay, begun, each)
