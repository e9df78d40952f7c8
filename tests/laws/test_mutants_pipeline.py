"""Pipelines broken on purpose: each is caught by verify, though its traffic may look right."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from small import cpu, small_layout

from jaxpar.measures.verify.verify import verify
from jaxpar.step.make_step import make_step
from jaxpar.step.pipeline import gradient
from jaxpar.step.pipeline.timetable import BACKWARD, IDLE, Exchange, timetable

pytestmark = pytest.mark.usefixtures("drawn_once")


def found_wrong(monkeypatch, breaking):
    """The verdict on four stages whose timetable was broken."""
    monkeypatch.setattr(gradient, "timetable", lambda schedule: breaking(timetable(schedule)))
    layout = small_layout("transformer", "pipeline", "pipe=4", layers=4)
    verdict = verify(layout, hardware=cpu(), make=partial(make_step, microbatches=4))
    assert not verdict.ok, "the mistake was not caught"
    assert verdict.likely_mistake
    return verdict


def shifted_by_two(table):
    """Every message goes one stage too far."""

    def shifted(pairs):
        return tuple(sorted((s, (t + (1 if t > s else -1)) % 4) for s, t in pairs))

    loops = tuple(
        replace(
            loop,
            exchanges=tuple(Exchange(shifted(e.onward), shifted(e.back)) for e in loop.exchanges),
        )
        for loop in table.loops
    )
    return replace(table, loops=loops)


def bubbles_count(table):
    """Idle stages work all the same, on whatever is in their slots."""
    return replace(table, kind=np.where(table.kind == IDLE, BACKWARD, table.kind))


def one_slot_too_few(table):
    """What forward keeps of one microbatch is overwritten by the next."""
    return replace(table, keep=np.where(table.keep == 1, 0, table.keep))


def another_microbatch(table):
    """Backward passes take the rows of the microbatch before."""
    wrong = np.where(table.kind == BACKWARD, (table.microbatch + 3) % 4, table.microbatch)
    return replace(table, microbatch=wrong.astype("i4"))


@pytest.mark.parametrize(
    "breaking", [shifted_by_two, bubbles_count, one_slot_too_few, another_microbatch]
)
def test_a_broken_pipeline_is_caught(monkeypatch, breaking):
    """Shifted by two, bubbles not masked, an activation lost, the wrong rows: gradients differ."""
    verdict = found_wrong(monkeypatch, breaking)
    assert verdict.decisive.name in ("gradient", "loss")
    assert not verdict.decisive.error <= 1e-4
