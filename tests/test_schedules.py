"""Schedules as tables, and the timetables that devices walk by: pure numbers, nothing compiled."""

from dataclasses import replace
from itertools import product

import pytest

from jaxpar.core.catalogue import SCHEDULES
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.schedules.record import Schedule, Work
from jaxpar.step.pipeline.timetable import NOWHERE, timetable

SIZES = ((2, 2), (2, 6), (4, 4), (4, 8), (3, 9), (8, 16))
"""Stages and microbatches; those of `interleaved` have to divide."""


def made(name: str, stages: int, microbatches: int) -> Schedule:
    return SCHEDULES.load(name)(stages, microbatches)


ALL = [made(name, k, m) for name, (k, m) in product(SCHEDULES.names(), SIZES)]


def named(schedule: Schedule) -> str:
    return f"{schedule.name}-{schedule.stages}-{schedule.microbatches}"


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_every_pass_is_made_once_and_after_what_it_needs(schedule):
    """Each microbatch goes forward through every piece in turn, then back the other way."""
    ticks = schedule.ticks_of
    works = [work for row in schedule.table for work in row if work is not None]
    assert len(works) == len(ticks) == 2 * schedule.microbatches * schedule.pieces
    for microbatch in range(schedule.microbatches):
        there = [ticks[True, microbatch, piece] for piece in range(schedule.pieces)]
        back = [ticks[False, microbatch, piece] for piece in reversed(range(schedule.pieces))]
        way = there + back
        assert all(a < b for a, b in zip(way, way[1:], strict=False))


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_stages_are_idle_for_as_long_as_published(schedule):
    """(K - 1) / (V M + K - 1), the bubble of GPipe, 1F1B and interleaved 1F1B; without overlap,
    (K - 1) / K."""
    k, m, v = schedule.stages, schedule.microbatches, schedule.chunks
    published = (k - 1) / k if schedule.name == "in_order" else (k - 1) / (v * m + k - 1)
    assert schedule.bubble_fraction == pytest.approx(published, abs=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_live_activations_are_as_many_as_published(schedule):
    """GPipe holds M, 1F1B min(M, K - p) on stage p, interleaved what Megatron fills it with."""
    k, m, v = schedule.stages, schedule.microbatches, schedule.chunks
    expected = {
        "in_order": lambda p: 1,
        "gpipe": lambda p: m,
        "one_f_one_b": lambda p: min(m, k - p),
        "interleaved": lambda p: min(m * v, 2 * (k - 1 - p) + (v - 1) * k + 1),
    }[schedule.name]
    assert [schedule.in_flight(p) for p in range(k)] == [expected(p) for p in range(k)]
    assert timetable(schedule).slots["keep"] == schedule.peak_in_flight


@pytest.mark.parametrize("schedule", ALL, ids=named)
def test_a_timetable_hands_every_stage_what_its_work_needs(schedule):
    """Walked by hand with symbols in the slots: each pass finds just the value it is to start from.

    This is the walk that devices make, in Python: work, send, permute, land.
    """
    table = timetable(schedule)
    slots = {name: [dict() for _ in range(schedule.stages)] for name in table.slots}
    tick = 0
    for loop in table.loops:
        assert tick == loop.first
        for _ in range(loop.turns):
            for exchange in loop.exchanges:
                sent = [_worked(schedule, table, slots, tick, s) for s in range(schedule.stages)]
                _landed(table, slots, tick, sent, exchange)
                tick += 1
    assert tick == schedule.ticks


def _worked(schedule, table, slots, tick, stage):
    """What a stage sends, after a check of what it finds."""
    work = schedule.table[tick][stage]
    if work is None:
        return "idle"
    piece, m = schedule.piece(stage, work), work.microbatch
    own, last = (m, piece), schedule.pieces - 1
    if work.forward:
        if piece > 0:
            assert slots["x"][stage].pop(table.take_x[tick, stage]) == ("y", m, piece - 1)
        assert slots["keep"][stage].setdefault(table.keep[tick, stage], own) == own
        if piece == last:
            slots["keep_y"][stage][table.keep_y[tick, stage]] = ("y", m, piece)
        return ("y", m, piece)
    if piece < last:
        assert slots["dy"][stage].pop(table.take_dy[tick, stage]) == ("dx", m, piece + 1)
    else:
        assert slots["keep_y"][stage].pop(table.keep_y[tick, stage]) == ("y", m, piece)
    assert slots["keep"][stage].pop(table.keep[tick, stage]) == own
    return ("dx", m, piece)


def _landed(table, slots, tick, sent, exchange):
    for name, pairs in (("x", exchange.onward), ("dy", exchange.back)):
        arrived = {target: sent[source] for source, target in pairs}
        for stage in range(len(sent)):
            slot = getattr(table, f"land_{name}")[tick, stage]
            if slot != NOWHERE:
                assert slot not in slots[name][stage], "it lands on something still to be used"
                slots[name][stage][slot] = arrived[stage]


def test_one_permute_a_tick_serves_both_ways_where_neighbours_take_turns():
    """1F1B exchanges an activation for a gradient: 2 (M + K - 1) permutes, as many as ticks."""
    for k, m in SIZES:
        for name in ("gpipe", "one_f_one_b"):
            # Two stages meet in every second tick of 1F1B only.
            ticks = 2 * (m + k - 1)
            most = ticks // 2 if (name, k) == ("one_f_one_b", 2) else ticks
            assert timetable(made(name, k, m)).permutes == most


@pytest.mark.parametrize(
    ("stages", "microbatches", "permutes"), [(4, 8, 40), (4, 16, 72), (8, 16, 85), (3, 9, 65)]
)
def test_interleaved_stages_permute_little_more_than_they_send(stages, microbatches, permutes):
    """A permute a tick, but where activations and gradients collide: until all stages take turns,
    and with an odd number of stages as long as both kinds are under way."""
    schedule = made("interleaved", stages, microbatches)
    assert timetable(schedule).permutes == permutes
    if stages % 2 == 0:
        assert permutes <= schedule.ticks + 2 * (stages - 1)
    in_one_loop = timetable(replace(schedule, phases=(0,)))
    assert in_one_loop.permutes == 2 * schedule.ticks


def test_interleaved_sends_more_messages_to_be_idle_less():
    """With twice the chunks a microbatch comes by twice, and the bubble is about half."""
    plain, twice = made("one_f_one_b", 4, 8), SCHEDULES.load("interleaved")(4, 8, 2)
    assert twice.messages == 2 * plain.messages
    assert twice.bubble_fraction < 0.6 * plain.bubble_fraction


def test_an_evaluation_is_the_forward_passes_alone():
    """As many ticks as it takes to fill the pipeline and run it: M + K - 1."""
    schedule = made("one_f_one_b", 4, 8).forward_only()
    assert schedule.ticks == 8 + 4 - 1
    works = [w for row in schedule.table for w in row if w is not None]
    assert len(works) == 8 * 4 and all(work.forward for work in works)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: SCHEDULES.load("interleaved")(4, 6),
            "4 stages do not divide microbatches=6.*4 or 8",
        ),
        (lambda: SCHEDULES.load("gpipe")(4, 8, 2), "one chunk of layers a stage.*interleaved"),
        (lambda: SCHEDULES.load("gpipe")(4, 0), "microbatches=0: use 1 or more"),
        (lambda: SCHEDULES.load("interleaved")(2, 2, 10**6), "4,000,000 forward passes, and there"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make, sentence):
    """With the counts met and those that work."""
    with pytest.raises((LayoutError, RequestError), match=sentence):
        make()


def test_a_table_is_shown_a_line_a_stage():
    """Forward as the microbatch's number, backward in brackets, idle as dots."""
    schedule = Schedule("x", 2, 1, 1, ((Work(True, 0), None), (None, Work(False, 0))))
    assert schedule.picture() == "stage 0  0 ...\nstage 1 ...[0]"
