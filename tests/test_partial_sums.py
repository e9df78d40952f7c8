"""Partial sums followed through small modules, elements of tuples, and XLA's account of memory."""

import pytest
from hlo_text import program

from jaxpar.hlo.buffers import buffers
from jaxpar.hlo.flow import Flow, Node, moves
from jaxpar.hlo.occupancy import live_at, occupancy
from jaxpar.hlo.parse import parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.hlo.values import Factor, regrouped

MESH = {"data": 4, "model": 2}
OVER_MODEL = "replica_groups=[4,2]<=[8], use_global_device_ids=true, channel_id=1, to_apply=%add"
OVER_DATA = (
    "replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true, channel_id=1, to_apply=%add"
)
SHARDED = "sharding={devices=[1,2,4]<=[4,2]T(1,0) last_tile_dim_replicate}"
OTHER = "sharding={devices=[2,1,4]<=[4,2]T(1,0) last_tile_dim_replicate}"
PRODUCT = f"""
    %x = f32[16,8] parameter(1), {SHARDED}
    %w = f32[8,8] parameter(2), {OTHER}
    %d = f32[16,8] dot(%x, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
"""


def faults(lines):
    """(kind, axis) of what is told of a module with a product over a dim sharded over `model`."""
    text = program(PRODUCT + lines).replace("parameter(0)", "parameter(0), sharding={replicated}")
    return [(fault.kind, fault.axis) for fault in Sums(parse(text), MESH).faults]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (f"%s = f32[16,8] all-reduce(%d), {OVER_MODEL}\n%t = f32[16,8] tanh(%s)", []),
        ("%t = f32[16,8] tanh(%d)", [("not reduced", "model")]),
        ("%t = f32[16,8] multiply(%d, %d)", [("not reduced", "model")]),
        (f"%t = f32[16,8] multiply(%d, %p)\n%s = f32[16,8] all-reduce(%t), {OVER_MODEL}", []),
        # A sum of partial sums is one, and what all devices have alike may be added to it.
        (f"%t = f32[16,8] add(%d, %d)\n%s = f32[16,8] all-reduce(%t), {OVER_MODEL}", []),
        (
            f"%s = f32[16,8] all-reduce(%d), {OVER_MODEL}\n"
            f"%t = f32[16,8] all-reduce(%s), {OVER_MODEL}",
            [("summed twice", "model")],
        ),
        (f"%s = f32[16,8] all-reduce(%d), {OVER_DATA}", [("wrong group", "model")]),
        (
            f"%s = f32[16,8] all-reduce(%d), {OVER_MODEL}\n%t = f32[16,8] add(%s, %d)",
            [("added too early", "model")],
        ),
        ("ROOT %t = (f32[16,8]) tuple(%d)", [("handed out", "model")]),
        # Of an operation without a rule nothing is claimed.
        ('%c = f32[16,8] custom-call(%d), custom_call_target="own"\n%t = f32[16,8] tanh(%c)', []),
    ],
)
def test_a_partial_sum_is_told_where_it_is_certainly_wrong(lines, expected):
    """A product over a sharded dim must be summed once, over that axis, before it is used."""
    assert faults(lines) == expected


def test_of_dims_of_one_element_a_reshape_leaves_only_those_certain_that_all_stay():
    """Which of two that stand side by side went is not told; elsewhere nothing is in doubt."""
    layers, heads = (Factor("layers", 1),), (Factor("heads", 1, frozenset({"model"})),)
    wide = (Factor("width", 4),)
    both = regrouped([wide, layers, heads, wide], (4, 1, 1, 4))
    fewer = regrouped([wide, heads, layers, wide], (4, 1, 4))
    assert both is not None and fewer is not None
    assert [d[0].is_sure for d in both if d[0].axes] == [True]
    assert not any(f.is_sure for d in fewer for f in d if f.axes)
    merged = regrouped([wide, wide, heads], (16, 1))
    assert merged is not None and merged[1][0].is_sure


GROUPS = """
    %x = f32[2,8] parameter(1), sharding={devices=[8,1]<=[8]}
    %r = f32[1,2,8] reshape(%x), metadata={op_name="jit(f)/OP"}
    %g = f32[1,8] reduce(%r, %zero), dimensions={1}, to_apply=%add
    %t = f32[1,8] tanh(%g)
"""


def test_a_dim_taken_apart_by_a_reshape_may_be_sharded_along_its_outer_part_alone():
    """Rows in groups, a group on a device: the sum over a group's rows is whole there."""
    zero = "%zero = f32[] constant(0)\n"
    split = faults(zero + GROUPS.replace("OP", "reshape").replace("%x", "%y").replace("(1)", "(3)"))
    added = faults(
        zero + GROUPS.replace("OP", "broadcast_in_dim").replace("%x", "%y").replace("(1)", "(3)")
    )
    assert split == []
    assert sorted(added) == [("not reduced", "data"), ("not reduced", "model")]


def test_a_slice_that_begins_at_the_same_place_on_all_devices_is_nobodys_own():
    """A device's own number minus itself is 0 everywhere, so no part of a partial sum is taken."""
    lines = f"""
        %id = u32[] partition-id()
        %table = s32[8] constant({{0, 8, 0, 8, 0, 8, 0, 8}})
        %one = s32[1] dynamic-slice(%table, %id), dynamic_slice_sizes={{1}}
        %own = s32[] reshape(%one)
        %zero = s32[] constant(0)
        %begin = s32[] subtract(%own, OTHER)
        %part = f32[8,8] dynamic-slice(%d, %begin, %zero), dynamic_slice_sizes={{8,8}}
        %s = f32[8,8] all-reduce(%part), {OVER_MODEL}
    """
    assert faults(lines.replace("OTHER", "%own")) == []
    assert faults(lines.replace("OTHER", "%zero")) == [("not reduced", "model")]


def test_an_element_that_is_written_as_its_number_is_that_element():
    """JAX 0.11 writes `%tuple#1` where others write a get-tuple-element."""
    text = program(
        "%n = f32[4] constant({1,2,3,4})\n%t = (f32[16,8], f32[4]) tuple(%p, %n)\n"
        "%r = f32[4] negate(%t#1)"
    )
    module = parse(text)
    found = list(Flow(module).back(Node("main", "t#1"), moves))
    assert {node.name for node in found} == {"t#1", "t", "n"}
    with pytest.raises(ValueError, match="no such element"):
        parse(text.replace("#1", "#2"))


ASSIGNMENT = """BufferAssignment:
allocation 0: size 64, parameter 0, shape |f32[16]| at ShapeIndex {}:
 value: <1 p @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 4, thread-local:
 value: <2 q @0> (size=4,offset=0): f32[]
allocation 2: size 100, preallocated-temp:
 value: <3 a @0> (size=40,offset=0): f32[10]{0}
 value: <4 b{1} (phi) @0> (size=40,offset=0): f32[10]{0}
 value: <5 c @0> (size=60,offset=40): f32[15]{0}

Total bytes used: 168 (168B)
"""
LIVE = """HloLiveRange (max 4):
  InstructionSequence:
    0:p
    1:a
    2:b
    3:c
  BufferLiveRange:
    p{}:0-4
    a{}:1-3
    b{1}:2-3
    c{}:3-3
  Live ranges at 3 (peak):
    c: 60 bytes
"""


def test_values_that_share_their_bytes_count_once():
    """The carry of a loop and what is made of it in place have one slot."""
    found = buffers(ASSIGNMENT, LIVE)
    taken = occupancy(found, 2, lambda one: int(one.name == "c"))
    assert taken.classes == ((0, 40, 40, 40, 0), (0, 0, 0, 60, 0))
    assert taken.throughout == 64 and taken.peak == (3, 164)
    assert [one.name for one in live_at(found, 3)] == ["c", "a"]


@pytest.mark.parametrize(("assignment", "live"), [("", LIVE), (ASSIGNMENT, ""), (LIVE, ASSIGNMENT)])
def test_a_text_that_is_no_account_of_memory_is_refused(assignment, live):
    """Nothing is read as a program that takes no memory."""
    with pytest.raises(ValueError, match="no (schedule|allocation)"):
        buffers(assignment, live)
