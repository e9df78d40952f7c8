"""Schedules written by hand, replayed: what hides what, and what a pipeline's ticks take."""

import gzip
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from small import needs_gpu_compiler

import jaxpar
from jaxpar.core.catalogue import HARDWARE
from jaxpar.costs.rates import Device
from jaxpar.costs.replay import Replay, replay
from jaxpar.costs.timeline import trace
from jaxpar.hardware.own import PEAK, with_figures
from jaxpar.hardware.record import Rates
from jaxpar.hlo.parse import parse

H100 = HARDWARE.load("h100")()
ALONE = Device(replace(H100, reached=replace(H100.reached, crowding=1.0)))
"""Of which collectives take no multiprocessor away."""

MODULE = """HloModule m, is_scheduled=true, num_partitions=2

%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}}

{more}
ENTRY %main (x: f32[4096,4096]) -> f32[4096,4096] {{
  %x = f32[4096,4096]{{1,0}} parameter(0)
{body}
}}
"""
START = (
    "  %s = (f32[2048,4096]{1,0}, f32[4096,4096]{1,0}) all-gather-start(%h), channel_id=1, "
    "replica_groups={{0,1}}, dimensions={0}, use_global_device_ids=true"
)
HALF = "  %h = f32[2048,4096]{1,0} bitcast(%x)"
DONE = "  %g = f32[4096,4096]{1,0} all-gather-done(%s)"
REDUCE = (
    "  %r = f32[4096,4096]{1,0} all-reduce(%x), channel_id=2, replica_groups={{0,1}}, "
    "use_global_device_ids=true, to_apply=%add"
)


def product(name: str, left: str = "x", root: str = "") -> str:
    dims = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    return f"  {root}%{name} = f32[4096,4096]{{1,0}} dot(%{left}, %x), {dims}"


def of(*lines: str, more: str = "", device: Device = ALONE) -> Replay:
    return replay(parse(MODULE.format(body="\n".join(lines), more=more)), device)


ONE = of(product("p", root="ROOT ")).seconds
GATHER = of(HALF, START, DONE, "  ROOT %y = f32[4096,4096]{1,0} bitcast(%g)").seconds
REDUCTION = of(REDUCE, "  ROOT %y = f32[4096,4096]{1,0} bitcast(%r)").seconds


@pytest.mark.parametrize("products", range(3))
def test_a_gather_is_exposed_for_as_long_as_nothing_runs_beside_it(products):
    """Products before its done hide as much of it as they take."""
    between = [product(f"p{n}") for n in range(products)]
    found = of(HALF, START, *between, DONE, product("last", "g", root="ROOT "))
    waited = max(0.0, GATHER - products * ONE)
    assert found.exposed_seconds == pytest.approx(waited)
    assert found.communication_seconds == pytest.approx(GATHER)
    assert found.seconds == pytest.approx((products + 1) * ONE + waited)
    assert found.work_seconds["product"] == pytest.approx((products + 1) * ONE)


def test_what_is_synchronous_is_exposed_whole_and_collectives_take_turns():
    """The all-reduce begins when the gather has ended, and nothing runs meanwhile."""
    found = of(HALF, START, REDUCE, DONE, product("last", "g", root="ROOT "))
    assert found.exposed_seconds == pytest.approx(GATHER + REDUCTION)
    assert found.seconds == pytest.approx(GATHER + REDUCTION + ONE)


def test_work_beside_a_collective_is_slower_by_what_the_collective_takes():
    """Only while it runs; what is left after it runs as usual."""
    crowded = Device(replace(H100, reached=replace(H100.reached, crowding=1.25)))
    lines = (HALF, START, product("a"), product("b"), DONE, product("last", "g", root="ROOT "))
    found = of(*lines, device=crowded)
    beside = min(GATHER, 2 * 1.25 * ONE)
    assert found.crowded_seconds == pytest.approx(beside * (1 - 1 / 1.25))
    assert found.seconds == pytest.approx(3 * ONE + found.crowded_seconds + max(0, GATHER - beside))


LOOP = """%body (t: (s32[], f32[4096,4096])) -> (s32[], f32[4096,4096]) {
  %t = (s32[], f32[4096,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %v = f32[4096,4096]{1,0} get-tuple-element(%t), index=1
  %w = f32[4096,4096]{1,0} dot(%v, %v), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %o = (s32[], f32[4096,4096]{1,0}) tuple(%i, %w)
}

%until (t: (s32[], f32[4096,4096])) -> pred[] {
  %t = (s32[], f32[4096,4096]{1,0}) parameter(0)
  ROOT %c = pred[] constant(true)
}
"""


def test_a_loop_takes_as_long_as_its_turns():
    """By the compiler's own count, in the time and in the trace."""
    found = of(
        "  %zero = s32[] constant(0)",
        "  %t = (s32[], f32[4096,4096]{1,0}) tuple(%zero, %x)",
        "  %loop = (s32[], f32[4096,4096]{1,0}) while(%t), condition=%until, body=%body, "
        'backend_config={"known_trip_count":{"n":"5"}}',
        "  ROOT %y = f32[4096,4096]{1,0} get-tuple-element(%loop), index=1",
        more=LOOP,
    )
    assert found.seconds == pytest.approx(5 * ONE)
    events = [e for e in trace("m", found, lambda one: {})["traceEvents"] if e["ph"] == "X"]
    assert [e["ts"] for e in events] == pytest.approx([1e6 * n * ONE for n in range(5)])
    assert events[-1]["ts"] + events[-1]["dur"] == pytest.approx(1e6 * found.seconds)


def branches(scope: str) -> Replay:
    """A stage that is idle a quarter of its ticks, and else makes one product or three."""

    def branch(name: str, products: int) -> str:
        chain = [product(f"p{n}", f"p{n - 1}" if n else "x") for n in range(products)]
        last = f"p{products - 1}" if products else "x"
        return "\n".join([
            f"%{name} (x: f32[4096,4096]) -> f32[4096,4096] {{",
            "  %x = f32[4096,4096]{1,0} parameter(0)", *chain,
            f"  ROOT %y = f32[4096,4096]{{1,0}} bitcast(%{last})", "}\n",
        ])  # fmt: skip

    return of(
        "  %k = s32[] constant(0)",
        "  ROOT %y = f32[4096,4096]{1,0} conditional(%k, %x, %x, %x), "
        "branch_computations={%idle, %forward, %backward}, "
        f'metadata={{op_name="jit(update)/{scope}/cond"}}',
        more=branch("idle", 0) + branch("forward", 1) + branch("backward", 3),
    )


def works(*products: int) -> Replay:
    """A tick in which of eight stages three each do work of so many products, one kind each."""
    lines = ["  %go = pred[] constant(true)"]
    for n in range(len(products)):
        lines += [
            f"  %t{n} = (pred[], f32[4096,4096]{{1,0}}) tuple(%go, %x)",
            f"  %w{n} = (pred[], f32[4096,4096]{{1,0}}) while(%t{n}), condition=%go{n}, "
            f'body=%work{n}, metadata={{op_name="jit(f)/tick(6;8)/turns(3;8)/while"}}',
        ]
    lines.append("  ROOT %y = f32[4096,4096]{1,0} get-tuple-element(%w0), index=1")
    more = "".join(
        "\n".join([
            f"%work{n} (t: (pred[], f32[4096,4096])) -> (pred[], f32[4096,4096]) {{",
            "  %t = (pred[], f32[4096,4096]{1,0}) parameter(0)",
            "  %x = f32[4096,4096]{1,0} get-tuple-element(%t), index=1",
            *(product(f"p{k}", f"p{k - 1}" if k else "x") for k in range(many)),
            "  %no = pred[] constant(false)",
            f"  ROOT %o = (pred[], f32[4096,4096]{{1,0}}) tuple(%no, %p{many - 1})", "}\n",
            f"%go{n} (t: (pred[], f32[4096,4096])) -> pred[] {{",
            "  %t = (pred[], f32[4096,4096]{1,0}) parameter(0)",
            "  ROOT %c = pred[] get-tuple-element(%t), index=0", "}\n\n",
        ])
        for n, many in enumerate(products)
    )  # fmt: skip
    return of(*lines, more=more)


def test_a_tick_takes_what_a_busy_stage_does_on_average():
    """Two of eight idle, three of one product, three of three: two products a busy tick."""
    found = works(1, 3)
    assert found.seconds == pytest.approx(2 * ONE)
    assert found.work_seconds["product"] == pytest.approx(1.5 * ONE)
    assert found.work_seconds["bubble"] == pytest.approx(0.5 * ONE)
    assert works(4).seconds == pytest.approx(2 * ONE)


def test_what_one_stage_does_of_a_tick_counts_as_its_scope_says():
    """As often as that stage does it; XLA may spell the scope's branches either way."""
    found = branches("tick(6;8)/turns(3;8)/while/body/taken(8,0,16;8)")
    assert found.seconds == pytest.approx(6 * ONE)
    assert found.work_seconds["bubble"] == 0
    assert branches("tick(6;8)/taken(1,0,0;1)").seconds == 0


def test_of_other_branches_the_longest_is_taken():
    """Where devices differ, the slowest sets the pace."""
    assert branches("taken(2,3,3;8)").seconds == pytest.approx(3 * ONE)


FIGURES = (PEAK, *(f.name for f in fields(Rates) if f.type is float))


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "saved").glob("*-h100*")))
@pytest.mark.parametrize("figure", FIGURES)
def test_on_twice_a_rate_no_whole_program_is_slower(file, figure):
    """Of compiled steps, in a node and over two; the peak is that of every dtype."""
    module = parse(json.loads(gzip.decompress(file.read_bytes()))["finished"])
    for node in (8, 4):
        here = replace(H100, devices_per_node=node)
        assert here.rates is not None
        own = here.rates.flops_per_second["bfloat16"] if figure == PEAK else None
        told = 2 * (own or getattr(here.rates, figure))
        fast = Device(with_figures(here, {figure: told}))
        assert replay(module, fast).seconds <= replay(module, Device(here)).seconds


def _exposed_says_what_it_moves(program, found):
    """As the explanation of the same instruction does, and nothing where it is not asked to."""
    moved = {"all-gather": "weight ", "reduce-scatter": "gradient of "}
    told = jaxpar.explain(program).rows
    assert "all-gather" in {one.kind for one in found.exposed}
    for one in found.exposed:
        rows = [row for row in told if one.name in row.operations]
        assert one.what.split(", ")[0].split(" and ")[0] == rows[0].what
        assert one.source == rows[0].source
        assert one.what.startswith(moved.get(one.kind, ""))
    plain = jaxpar.predict(program, explains=False).exposed
    assert plain == tuple(replace(one, what="", source="") for one in found.exposed)


@needs_gpu_compiler
def test_a_prediction_is_one_line_and_keeps_every_bound():
    """Of a small decoder: no faster than its products, its memory traffic and its collectives."""
    model = jaxpar.MODELS.load("transformer")().with_batch_size(64)
    layout = jaxpar.lay_out(model, strategy="fsdp", mesh="data=8")
    program = jaxpar.compile_step(jaxpar.make_step(layout), hardware="h100")
    found, bound = jaxpar.predict(program), jaxpar.inspect(program).bounds
    assert bound is not None and found.step_seconds >= bound.step_seconds
    assert found.low_seconds < found.step_seconds < found.high_seconds
    assert len(repr(found)) < 250 and "MFU" in repr(found) and "\n" not in repr(found)
    work = sum(found.work_seconds.values()) + found.crowded_seconds
    assert found.step_seconds == pytest.approx(work + found.exposed_seconds)
    _exposed_says_what_it_moves(program, found)
    cost = found.cost(2.0)
    assert cost["cost_per_step"] == pytest.approx(16 * found.step_seconds / 3600)
