"""Layouts rated before any is compiled: refused cheaply or estimated, the most promising first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxpar.case import Case, Resolved, load_strategy
from jaxpar.core.errors import LayoutError, RequestError, expect
from jaxpar.core.kinds import whole
from jaxpar.core.mesh import MeshShape
from jaxpar.costs.rates import Device
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.measures.work import work
from jaxpar.search.enumerate import candidates
from jaxpar.search.estimate import estimate, facts
from jaxpar.search.record import CHOSEN, Candidate, Rated, Refused
from jaxpar.step.make_step import check_microbatches
from jaxpar.step.record import Step

ALIKE = 0.04
"""By so much more each further variant of one strategy and mesh is taken to cost, so that
different layouts come first."""


@dataclass(frozen=True)
class Rating:
    """What is known of all layouts before one is compiled.

    Attributes:
        rated: those with an estimate, the most promising first.
        refused: those that are not tried, one for each reason.
        considered: how many there are.
    """

    rated: tuple[Rated, ...]
    refused: tuple[Refused, ...]
    considered: int


def rate(
    question: Case, asked: Resolved, step: Step, devices: int, among: Iterable[Candidate] | None
) -> Rating:
    """Rate every layout of a question.

    Args:
        question: model, hardware and what is set.
        asked: the question, resolved on one device.
        step: of `asked`.
        devices: how many there are.
        among: the layouts that there are; all that can be enumerated when None.
    """
    hardware = asked.hardware.placed(devices)
    base, device, counted = asked.layout, Device(hardware), work(step)
    known = facts(base, float(sum(counted.flops.values())), counted.tokens, step)
    memory = hardware.memory_bytes or 0
    usable = device.reached.usable * memory
    node = hardware.devices_per_node or devices
    if among is None:
        among = candidates(base, devices, node, chosen=frozenset(question.set))
    refused: dict[str, Refused] = {}
    rated: list[Rated] = []
    made: dict[Any, Layout | str] = {}
    considered = 0
    for candidate in among:
        considered += 1
        layout = _layout_of(base, candidate, made)
        if not isinstance(layout, str):
            one = Rated(candidate, estimate(layout, candidate, known, device), usable)
            state = one.estimate.state_bytes
            if state <= memory:
                rated.append(one)
                continue
            layout = (
                f"parameters and optimizer state alone take {state / 1e9:.1f} GB a device, and it "
                f"has {memory / 1e9:.1f} GB"
            )
        first = refused.get(layout, Refused(candidate, layout, 0))
        refused[layout] = replace(first, count=first.count + 1)
    return Rating(tuple(_by_promise(rated)), tuple(refused.values()), considered)


def among_given(layouts: Iterable[str]) -> tuple[Candidate, ...]:
    """Layouts as `compare` takes them, each once.

    Raises:
        RequestError: one that cannot be read, has a field that does not belong to a layout, or has
            another number of devices than the first.
    """
    expect("the layouts", layouts, list | tuple, 'give texts, such as ["fsdp@data=8"]')
    for text in layouts:
        expect("a layout", text, str, 'write it as "fsdp@data=8"')
    found = tuple(_checked(text) for text in dict.fromkeys(layouts))
    counts = {MeshShape.parse(one.mesh).devices: one for one in found}
    if len(counts) > 1:
        (few, first), (more, second), *_ = sorted(counts.items())
        raise RequestError(
            f"{first.name} is of {few} devices and {second.name} of {more}: a search ranks layouts "
            "of one number of devices, and scale tells how one grows"
        )
    return found


def _checked(text: str) -> Candidate:
    """One layout whose fields are its own."""
    one = Candidate.parse(text)
    known = {*CHOSEN, *one.options()}
    for name in one.set:
        if name not in known:
            raise RequestError(
                f"layout '{text}': '{name}' is not of a layout, so it is the same for all that are "
                f"ranked: say --set {name}={one.set[name]}"
            )
    if (parts := one.set.get("microbatches")) is None:
        return one
    number = int(parts) if parts.isdecimal() else parts
    return replace(one, set={**one.set, "microbatches": whole("microbatches", number, least=1)})


def _layout_of(base: Layout, one: Candidate, made: dict[Any, Layout | str]) -> Layout | str:
    """A candidate's layout, or why it has none; `made` has those of candidates before it."""
    options = one.options()
    about = (one.strategy, one.mesh, *options.values())
    if about not in made:
        try:
            strategy = load_strategy(one.strategy, **options)
            made[about] = lay_out(base.model, strategy=strategy, mesh=one.mesh)
        except LayoutError as refusal:
            made[about] = str(refusal)
    layout = made[about]
    if not isinstance(layout, str):
        try:
            check_microbatches(layout, one.set.get("microbatches", 1))
        except LayoutError as refusal:
            return str(refusal)
    return layout


def _by_promise(rated: Iterable[Rated]) -> list[Rated]:
    """Layouts by their estimates, those later that seem not to fit or are like earlier ones."""

    def cost(one: Rated) -> float:
        over = one.estimate.memory_bytes / one.usable_bytes
        return one.estimate.seconds * (1.0 if over <= 1 else 1.2 if over <= 1.25 else 3.0)

    seen: dict[tuple[str, str], int] = {}
    weighed = []
    for one in sorted(rated, key=cost):
        about = (one.candidate.strategy, one.candidate.mesh)
        weighed.append((cost(one) * (1 + ALIKE * seen.get(about, 0)), one))
        seen[about] = seen.get(about, 0) + 1
    return [one for _, one in sorted(weighed, key=lambda pair: pair[0])]
