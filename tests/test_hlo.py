"""The records read from a compiled program's text, and how often each part of it runs."""

import re
import signal
from fractions import Fraction

import pytest
from hlo_mutants import SECONDS, WHOLE, attention, matmul, outcome, survey
from hlo_text import ONE_REDUCE, TABLES, G, found, loop, only, program, run_loop

from jaxpar.hlo.executions import Times, executions
from jaxpar.hlo.frames import Frame
from jaxpar.hlo.parse import bytes_of, parse


def test_a_line_or_a_text_that_is_not_understood_is_an_error():
    with pytest.raises(ValueError, match="not understood"):
        parse(program("%r = f32[16,8] <garbled"))
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule empty\n")


DAMAGED = {
    # Damage that once went round for ever, or took the square of its length.
    "a tuple operand cut off": (program("%r = f32[16,8] negate((f32[16,8] %p"), "does not end"),
    "a frame that is its own parent": (
        program(
            f"%r = f32[16,8] all-reduce(%p), {G}, metadata={{stack_frame_id=1}}", "", TABLES
        ).replace(
            "1 {file_location_id=2 parent_frame_id=1}", "1 {file_location_id=2 parent_frame_id=2}"
        ),
        "its own parent",
    ),
    "a copy of itself": (program("%r = f32[16,8] copy(%r)"), "operand r is not defined above"),
    "a computation that calls itself": (
        program("%r = f32[16,8] call(%p), to_apply=%main"),
        "to_apply=main names no computation",
    ),
    # Damage that once counted nothing where there was something.
    "a type that is none": (program(f"%r = f32 all-reduce(%p), {G}"), "'f32' is no type"),
    "groups of nobody": (
        program("%r = f32[] all-reduce(%p), replica_groups={{}}"),
        "replica groups",
    ),
    "groups of those who are not there": (
        program("%r = f32[] all-reduce(%p), replica_groups={{0,8}}"),
        "some of 8 devices",
    ),
    "pairs cut short": (
        program("%r = f32[] collective-permute(%p), source_target_pairs={{0,1},{2}}"),
        "pairs",
    ),
    "more devices than there are": (program(ONE_REDUCE, partitions=10**15), "1048576"),
    "an end that is missing": (program(ONE_REDUCE)[:-2], "ends inside of computation main"),
    "no whole number": (program(f"%c = f32[{'9' * 5000}] constant(0)"), "limit"),
    "a share of nothing": (
        program(
            "%k = s32[] constant(0)\n%r = f32[16,8] conditional(%k, %p), "
            'branch_computations={%add}, metadata={op_name="taken(1;0)/cond"}'
        ),
        "read",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_text_is_refused_with_what_is_wrong(name):
    """One ValueError, and never an answer that leaves the damaged part out."""
    text, sentence = DAMAGED[name]
    assert re.search(sentence, outcome(text)), outcome(text)


PRODUCTS = {
    "of a scalar": matmul("%k"),
    "of nothing": 'f32[] custom-call(), custom_call_target="__cublas$gemm"',
    "attention of two dims": attention("%p, %p"),
    "attention of one operand": attention("%h"),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_that_its_operands_cannot_make_is_refused(name):
    """In a sentence that names it; a shape has the dims that are summed over."""
    made = f"%k = f32[] constant(0)\n%h = f32[2,16,4,8] broadcast(%p)\n%r = {PRODUCTS[name]}"
    assert outcome(program(made)) == "r: no product can be made of its operands"


def test_what_refers_to_itself_over_and_over_is_walked_once():
    """Forty tuples of two, and forty fusions of two: one of each would be 2**40 steps."""
    head, end = "%{} (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n", "}\n\n"
    pairs = ["  %t0 = f32[16,8] tuple(%p, %p)\n"]
    pairs += [f"  {'ROOT ' * (n == 40)}%t{n} = f32[16,8] tuple(%t{n - 1}, %t{n - 1})\n"
              for n in range(1, 41)]  # fmt: skip
    inside = ["  ROOT %d = f32[16,8] dot(%p, %p), lhs_contracting_dims={1}\n"]
    inside += [f"  %a = f32[16,8] fusion(%p), kind=kLoop, calls=%f{n}\n"
               f"  ROOT %b = f32[16,8] fusion(%a), kind=kLoop, calls=%f{n}\n"
               for n in range(40)]  # fmt: skip
    bodies = "".join(head.format(f"f{n}") + body + end for n, body in enumerate(inside))
    bodies += head.format("pairs") + "".join(pairs) + end
    called = [f"%r{name} = f32[16,8] fusion(%p), kind=kLoop, calls=%{name}" for name in
              ("pairs", "f40")]  # fmt: skip
    signal.alarm(SECONDS)
    try:
        assert outcome(program("\n".join(called), bodies)) == "read"
    finally:
        signal.alarm(0)


LONG = {
    # Repeated, each once took a pattern the square of its length.
    "brackets": "%r = f32[16,8] negate({}%p)".format("(" * 200_000),
    "a word for a type": "%r = {} negate(%p)".format("a" * 200_000),
    "quotes": '%r = f32[16,8] negate(%p), a="{}'.format(r"\"" * 100_000),
    "groups": "%r = f32[16,8] all-reduce(%p), replica_groups=mesh[{}".format(" {" * 100_000),
    "calls": "%r = f32[16,8] negate(%p), {}=%p".format("a" * 200_000),
    "a part of an axis": "%r = f32[16,8] all-reduce(%p), replica_groups=mesh['a'=8] {{{}}}".format(
        "a" * 100_000
    ),
    "groups begun again": "%r = f32[16,8] all-reduce(%p), {}".format(
        "replica_groups=[2,4]<=[8 " * 30_000
    ),
    "callees": "%r = f32[16,8] add(%p, %p), {}".format("calls={%p " * 50_000),
    "signatures": "}}\n%r ({}".format(") -> " * 100_000),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_line_takes_no_longer_than_its_length(name):
    """Each would take minutes otherwise: the alarm is for the square of a length."""
    signal.alarm(SECONDS)
    try:
        assert len(outcome(program(LONG[name]))) < 1600  # and is told in short
    finally:
        signal.alarm(0)


def test_what_a_person_calls_something_is_no_attribute():
    """Name scopes are printed in quotes, and may hold anything."""
    named = 'metadata={op_name="jit(f)/calls=%no stack_frame_id=7/x" stack_frame_id=1}'
    (one,) = found(program(f"%r = f32[16,8] all-reduce(%p), {G}, {named}", tables=TABLES))
    assert one.frames == (Frame("/home/me/train.py", 99, "main"),)


def test_whole_texts_are_read_and_damaged_ones_read_or_refused():
    """Nothing hangs, and nothing but ValueError is raised; each kind of refusal is met."""
    assert {outcome(text) for text in WHOLE} == {"read"}
    told = survey(2000)
    assert 100 < told["read"] < 1000 and len(told) > 30


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("pred", (3,)), 3),
        (("s4", (3,)), 2),  # two to a byte, the last half empty
        (("u2", (9,)), 3),
        (("bf16", (2, 3)), 12),
        (("f8e4m3fn", (7,)), 7),
        (("f4e2m1fn", (4,)), 2),
        (("c64", (2,)), 16),
        (("c128", ()), 16),
        (("f32", (0, 5)), 0),
        (("token", ()), 0),
    ],
)
def test_bytes_of_every_width(shape, expected):
    assert bytes_of(shape) == expected


# --- executions ----------------------------------------------------------------------------------


def test_nested_loops_multiply():
    inner = loop("inner", ONE_REDUCE)
    outer = loop("outer", run_loop("inner", "p", known="3") + f"%g = {ONE_REDUCE[5:]}")
    text = program(run_loop("outer", "p", known="5"), inner + "\n" + outer)
    in_outer, in_inner = sorted(found(text), key=lambda one: one.executions)
    assert (in_outer.executions, in_outer.exact) == (5, True)
    assert (in_inner.executions, in_inner.exact) == (15, True)
    # A condition runs once more than its body: 5 times (3 + 1) for the inner one.
    runs = executions(parse(text))
    assert runs["inner_cond"] == runs["inner_less"] == Times(20, True)
    assert "add" not in runs  # a reducer runs once an element, which is not control flow


def test_two_callers_of_one_computation_add_up():
    shared = f"%shared (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n  ROOT {ONE_REDUCE}\n}}\n"  # noqa: E501
    body = "%r = f32[16,8] call(%p), to_apply=%shared"
    text = program(
        run_loop("five", "p", known="5") + "%again = f32[16,8] call(%p), to_apply=%shared",
        shared + "\n" + loop("five", body),
    )
    assert only(text).executions == 6


@pytest.mark.parametrize(
    ("start", "step", "expected"),
    [("0", "1", (7, True)), ("2", "1", (1, False)), ("0", "2", (1, False))],
)
def test_a_loop_without_the_compilers_count(start, step, expected):
    """`for i in range(7)` is proved from the text; any other start or step counts as one."""
    text = program(run_loop("a", "p", start=start), loop("a", ONE_REDUCE, step=step))
    one = only(text)
    assert (one.executions, one.exact) == expected


def test_a_branch_counts_as_taken_and_is_marked():
    branches = "".join(
        f"%{name} (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n  ROOT {line}\n}}\n\n"  # noqa: E501
        for name, line in (("yes", ONE_REDUCE), ("no", "%r = f32[16,8] negate(%p)"))
    )
    text = program(
        "%k = s32[] constant(0)\n"
        "%r = f32[16,8] conditional(%k, %p, %p), branch_computations={%yes, %no}\n"
        f"%after = {ONE_REDUCE[5:]}",
        branches,
    )
    in_branch, after = found(text)
    assert (in_branch.executions, in_branch.exact) == (1, False)
    assert (after.executions, after.exact) == (1, True)
    runs = executions(parse(text))
    assert runs["yes"] == runs["no"] == Times(1, False)


@pytest.mark.parametrize(
    "branches", ["branch_computations={%no, %yes}", "true_computation=%yes, false_computation=%no"]
)
def test_a_branch_counts_as_often_as_its_name_scope_says(branches):
    """Branch 0 three times of eight, branch 1 five times, however XLA spells the two."""
    computations = "".join(
        f"%{name} (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n  ROOT {line}\n}}\n\n"  # noqa: E501
        for name, line in (("yes", ONE_REDUCE), ("no", "%r = f32[16,8] negate(%p)"))
    )
    text = program(
        "%k = s32[] constant(0)\n"
        f"%r = f32[16,8] conditional(%k, %p, %p), {branches}, "
        'metadata={op_name="jit(f)/taken(3,5;8)/cond"}',
        computations,
    )
    (one,) = found(text)
    assert (one.executions, one.exact) == (Fraction(5, 8), True)


def test_a_loop_turns_as_often_as_its_name_scope_says():
    """Three times in eight runs: some devices take a turn and others none."""
    text = program(run_loop("l", "p", scope="turns(3;8)"), loop("l", ONE_REDUCE))
    assert (only(text).executions, only(text).exact) == (Fraction(3, 8), True)


def test_a_guess_outside_makes_what_is_inside_a_guess():
    """An inner loop of known length, inside an outer one of unknown length."""
    outer = loop("outer", run_loop("inner", "p", known="3"))
    text = program(run_loop("outer", "p", start="2"), loop("inner", ONE_REDUCE) + "\n" + outer)
    one = only(text)
    assert (one.executions, one.exact) == (3, False)


def test_a_computation_nobody_calls_says_nothing():
    assert not found(program("%r = f32[16,8] negate(%p)", loop("dead", ONE_REDUCE)))


# --- source --------------------------------------------------------------------------------------


def test_frames_are_read_innermost_first():
    """The printer shows a parent's id plus one, and one for no parent: 2's parent is 1."""
    meta = 'metadata={op_name="jit(f)/block/dot_general" stack_frame_id=2}'
    one = only(program(f"%r = f32[16,8] all-reduce(%p), {G}, {meta}", tables=TABLES))
    inner = Frame("/home/me/model.py", 12, "block")
    assert one.frames == (inner, Frame("/home/me/train.py", 99, "main"))
    assert (one.op_name, one.borrowed) == ("jit(f)/block/dot_general", False)


@pytest.mark.parametrize("text", [None, 3, b"HloModule m", ["HloModule m"]], ids=repr)
def test_what_is_no_text_is_refused(text):
    """Bytes too: what they are is not said."""
    with pytest.raises(ValueError, match="is no HLO text: pass compiled.as_text"):
        parse(text)
