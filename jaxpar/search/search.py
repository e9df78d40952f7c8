"""The best layout of a model on so many devices: enumerated, estimated, compiled, ranked.

Every layout is refused cheaply or estimated by formulas; those with the least estimates are
compiled for the hardware, and ranked by what is predicted from the compiled program.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxpar.case import Case, Resolved, load_strategy
from jaxpar.core.errors import LayoutError, RequestError, expect
from jaxpar.core.kinds import whole
from jaxpar.core.mesh import MOST_DEVICES
from jaxpar.costs.rates import Device
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.measures.work import work
from jaxpar.search.compiled import compile_all
from jaxpar.search.enumerate import candidates
from jaxpar.search.estimate import estimate, facts
from jaxpar.search.kept import Kept, key_of
from jaxpar.search.outcome import Search
from jaxpar.search.record import Candidate, Estimate, Found, Refused

LEAST = 12
"""Layouts that are compiled before a search may stop because the rest is not promising."""

HOPELESS = 1.5
"""Estimates above this many times the best prediction are not compiled."""

MOST_COMPILED = 200
ALIKE = 0.04
"""By so much more each further variant of one strategy and mesh is taken to cost, so that
different layouts come first."""

Watch = Callable[[int, int, Found], None]


def search(
    question: Case,
    *,
    devices: int,
    budget_seconds: float = 120.0,
    workers: int | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Search:
    """Search the layouts of a model.

    Args:
        question: model, described hardware and what is set; its strategy and mesh are not read.
        devices: how many there are.
        budget_seconds: for compiling, that of earlier searches of the question counted.
        workers: how many processes compile; as many as there are cores when None.
        folder: where what was found is kept, or None.
        watch: told (number, of how many, what was found) of each layout compiled.

    Raises:
        RequestError: hardware whose speed is not known, or no layout that could be compiled.
        KeyboardInterrupt: what was found by then is kept.
    """
    expect("the question", question, Case, 'jaxpar.Case("llama3_8b", hardware="h100") makes one')
    devices = whole("devices", devices, least=1, most=MOST_DEVICES)
    started = time.monotonic()
    asked = replace(question, strategy="single", mesh="data=1").resolve()
    device, step = Device(asked.hardware.placed(devices)), asked.make(asked.layout)
    kept = Kept(folder, key_of(asked, step, devices))
    if not kept.about:
        ordered, refused, considered = _ordered(question, asked, devices, device)
        kept.about = {
            "ordered": [[asdict(c), seconds] for c, seconds in ordered],
            "refused": [asdict(one) for one in refused],
            "considered": considered,
        }
    ordered = [(Candidate(**c), seconds) for c, seconds in kept.about["ordered"]]
    refused = [
        Refused(Candidate(**one["candidate"]), one["reason"], one["count"])
        for one in kept.about["refused"]
    ]
    if not ordered:
        first = refused[0].reason if refused else "no mesh has as many"
        raise RequestError(f"no layout on {devices} devices can be tried: {first}")
    _compile(question, ordered, kept, budget_seconds, workers or os.cpu_count() or 1, watch)
    by_name = {c.name: (c, seconds) for c, seconds in ordered}
    found = [
        Found(*by_name[name], prediction)
        for name, prediction in kept.found.items()
        if name in by_name
    ]
    return Search(
        question=question,
        devices=devices,
        found=tuple(sorted(found, key=lambda one: (not one.fits, one.seconds))),
        refused=tuple(refused),
        considered=kept.about["considered"],
        estimated=len(ordered),
        seconds=time.monotonic() - started,
    )


def _compile(question: Case, ordered, kept: Kept, budget: float, workers: int, watch) -> None:
    """Compile the most promising layouts that are not known yet, until the budget is spent."""
    left = [(c, s) for c, s in ordered[:MOST_COMPILED] if c.name not in kept.found]
    started = time.monotonic()
    spent, until = kept.spent_seconds, started + budget - kept.spent_seconds
    todo = [_words(c.case(question)) for c, _ in left]
    try:
        for number, prediction in compile_all(todo, until=until, workers=workers):
            candidate, seconds = left[number]
            kept.found[candidate.name] = prediction
            kept.spent_seconds = spent + time.monotonic() - started
            kept.save()
            if watch is not None:
                watch(len(kept.found), len(ordered), Found(candidate, seconds, prediction))
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


def _ordered(
    question: Case, asked: Resolved, devices: int, device: Device
) -> tuple[list[tuple[Candidate, float]], list[Refused], int]:
    """(candidates with their estimates, the most promising first; refused; how many in all)."""
    base, step = asked.layout, asked.make(asked.layout)
    counted = work(step)
    known = facts(base, float(sum(counted.flops.values())), counted.tokens, step)
    node = device.hardware.devices_per_node or devices
    memory = asked.hardware.memory_bytes or 0
    refused: dict[str, Refused] = {}
    rated: list[tuple[Candidate, Estimate]] = []
    considered = 0
    for candidate, layout in _laid_out(question, base, devices, node):
        considered += 1
        if isinstance(layout, str):
            reason = layout
        else:
            rating = estimate(layout, candidate, known, device)
            if rating.state_bytes <= memory:
                rated.append((candidate, rating))
                continue
            reason = (
                f"parameters and optimizer state alone take {rating.state_bytes / 1e9:.1f} GB a "
                f"device, and it has {memory / 1e9:.1f} GB"
            )
        first = refused.get(reason, Refused(candidate, reason, 0))
        refused[reason] = replace(first, count=first.count + 1)
    usable = device.reached.usable * memory
    return _by_promise(rated, usable), list(refused.values()), considered


def _by_promise(
    rated: list[tuple[Candidate, Estimate]], usable: float
) -> list[tuple[Candidate, float]]:
    """Candidates by their estimates, those later that seem not to fit or are like earlier ones."""

    def cost(one: Estimate) -> float:
        over = one.memory_bytes / usable
        return one.seconds * (1.0 if over <= 1 else 1.2 if over <= 1.25 else 3.0)

    seen: dict[tuple[str, str], int] = {}
    weighed = []
    for candidate, rating in sorted(rated, key=lambda pair: cost(pair[1])):
        about = (candidate.strategy, candidate.mesh)
        weighed.append((cost(rating) * (1 + ALIKE * seen.get(about, 0)), candidate, rating.seconds))
        seen[about] = seen.get(about, 0) + 1
    return [(c, seconds) for _, c, seconds in sorted(weighed, key=lambda one: one[0])]


def _laid_out(
    question: Case, base: Layout, devices: int, node: int
) -> Iterator[tuple[Candidate, Layout | str]]:
    """Every candidate with its layout, or with why it has none; each layout is made once."""
    made: dict[Any, Layout | str] = {}
    for candidate in candidates(base, devices, node, chosen=frozenset(question.set)):
        options = {n: candidate.set[n] for n in ("schedule", "chunks") if n in candidate.set}
        about = (candidate.strategy, candidate.mesh, *options.values())
        if about not in made:
            try:
                strategy = load_strategy(candidate.strategy, **options)
                made[about] = lay_out(base.model, strategy=strategy, mesh=candidate.mesh)
            except LayoutError as refusal:
                made[about] = str(refusal)
        yield candidate, made[about]
