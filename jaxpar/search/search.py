"""The best layout of a model on so many devices: enumerated, estimated, compiled, ranked.

Every layout is refused cheaply or estimated by formulas; those with the least estimates are
compiled for the hardware, and ranked by what is predicted from the compiled program.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxpar.case import Case
from jaxpar.core.errors import RequestError, expect
from jaxpar.core.kinds import whole
from jaxpar.core.mesh import MOST_DEVICES, MeshShape
from jaxpar.search.compiled import compile_all
from jaxpar.search.kept import Kept, key_of
from jaxpar.search.outcome import Search
from jaxpar.search.rating import Rating, among_given, rate
from jaxpar.search.record import Candidate, Estimate, Found, Rated, Refused

LEAST = 12
"""Layouts that are compiled before a search may stop because the rest is not promising."""

HOPELESS = 1.5
"""Estimates above this many times the best prediction are not compiled."""

MOST_COMPILED = 200

Watch = Callable[[int, int, Found], None]


def search(
    question: Case,
    *,
    devices: int | None = None,
    layouts: Sequence[str] | None = None,
    budget_seconds: float = 120.0,
    workers: int | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Search:
    """Search the layouts of a model.

    Args:
        question: model, described hardware and what is set; its strategy and mesh are not read.
        devices: how many there are; those of `layouts` when None.
        layouts: as "fsdp@data=8@remat=full", to choose among; all that can be enumerated when None.
        budget_seconds: for compiling, that of earlier searches of the question counted; with 0
            layouts are estimated only.
        workers: how many processes compile; as many as there are cores when None.
        folder: where what was found is kept, or None.
        watch: told (number, of how many, what was found) of each layout compiled.

    Raises:
        RequestError: hardware whose speed is not known, or no layout that could be compiled.
        KeyboardInterrupt: what was found by then is kept.
    """
    expect("the question", question, Case, 'jaxpar.Case("llama3_8b", hardware="h100") makes one')
    among = None if layouts is None else among_given(layouts)
    devices = _count(devices, among)
    started = time.monotonic()
    asked = replace(question, strategy="single", mesh="data=1").resolve()
    step = asked.make(asked.layout)
    kept = Kept(folder, key_of(asked, step, devices, layouts))
    rating = _read(kept.about)
    if rating is None:
        rating = rate(question, asked, step, devices, among)
        kept.about = asdict(rating)
    if not rating.rated:
        first = rating.refused[0].reason if rating.refused else "no mesh has as many"
        raise RequestError(f"no layout on {devices} devices can be tried: {first}")
    _compile(question, rating.rated, kept, budget_seconds, workers or os.cpu_count() or 1, watch)
    by_name = {one.candidate.name: one for one in rating.rated}
    found = [
        Found(by_name[name].candidate, by_name[name].estimate.seconds, prediction)
        for name, prediction in kept.found.items()
        if name in by_name
    ]
    return Search(
        question=question,
        devices=devices,
        found=tuple(sorted(found, key=lambda one: (not one.fits, one.seconds))),
        rated=rating.rated,
        refused=rating.refused,
        considered=rating.considered,
        seconds=time.monotonic() - started,
    )


def _count(devices: int | None, among: Sequence[Candidate] | None) -> int:
    """How many devices there are, which is as many as the layouts that are given have."""
    if among is None:
        return whole("devices", devices, least=1, most=MOST_DEVICES)
    if not among:
        raise RequestError("there are no layouts to choose among: leave them out to try all")
    own = MeshShape.parse(among[0].mesh).devices
    if devices is not None and devices != own:
        raise RequestError(
            f"the mesh of {among[0].name} has {own} devices, not {devices}: say --devices {own}, "
            "or nothing of devices"
        )
    return own


def _read(about: Mapping[str, Any]) -> Rating | None:
    """A rating as it was kept; None where there is none, or none that can be read."""
    try:
        rated = tuple(
            Rated(Candidate(**one["candidate"]), Estimate(**one["estimate"]), one["usable_bytes"])
            for one in about["rated"]
        )
        refused = tuple(
            Refused(Candidate(**one["candidate"]), one["reason"], one["count"])
            for one in about["refused"]
        )
        return Rating(rated, refused, about["considered"])
    except (KeyError, TypeError):
        return None


def _compile(
    question: Case,
    rated: Sequence[Rated],
    kept: Kept,
    budget: float,
    workers: int,
    watch: Watch | None,
) -> None:
    """Compile the most promising layouts that are not known yet, until the budget is spent."""
    left = [one for one in rated[:MOST_COMPILED] if one.candidate.name not in kept.found]
    started = time.monotonic()
    spent, until = kept.spent_seconds, started + budget - kept.spent_seconds
    if until <= started:
        return
    todo = [_words(one.candidate.case(question)) for one in left]
    try:
        for number, prediction in compile_all(todo, until=until, workers=workers):
            candidate, seconds = left[number].candidate, left[number].estimate.seconds
            kept.found[candidate.name] = prediction
            kept.spent_seconds = spent + time.monotonic() - started
            kept.save()
            if watch is not None:
                watch(len(kept.found), len(rated), Found(candidate, seconds, prediction))
            best = min(
                (p["step_seconds"] for p in kept.found.values() if p.get("fits")),
                default=float("inf"),
            )
            if len(kept.found) >= LEAST and seconds > HOPELESS * best:
                break
    finally:
        kept.spent_seconds = spent + time.monotonic() - started
        kept.save()


def _words(case: Case) -> dict[str, Any]:
    """A case as JSON has it."""
    return {
        "model": case.model, "strategy": case.strategy, "mesh": case.mesh,
        "hardware": case.hardware, "mode": case.mode, "set": dict(case.set),
    }  # fmt: skip
