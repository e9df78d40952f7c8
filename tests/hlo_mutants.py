"""Texts of compiled programs, damaged: each must be read, or refused with one ValueError.

The tests take some; `python tests/hlo_mutants.py COUNT FILE ...` takes any number, of real programs
too, each file as `compiled.as_text()` gave it.
"""

import random
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hlo_text import ONE_REDUCE, TABLES, G, loop, program, run_loop

from jaxpar.core.catalogue import HARDWARE
from jaxpar.costs.rates import Device
from jaxpar.costs.replay import replay
from jaxpar.hlo.collectives import collectives
from jaxpar.hlo.flow import Flow, keeps_elements, moves
from jaxpar.hlo.frames import frames_of
from jaxpar.hlo.parse import parse
from jaxpar.hlo.partial_sums import Sums
from jaxpar.hlo.parts import parts_of
from jaxpar.hlo.schedule import between
from jaxpar.hlo.touched import touched
from jaxpar.measures.traffic import traffic

NUMBERS = (*"01237", "8", "64", "999999999", "-1", "1e5", "9" * 5000)
MESH = {"data": 4, "model": 2}
DEVICE = Device(HARDWARE.load("h100")())
SECONDS = 20
"""A text that takes so long is taken to hang: whole ones take milliseconds."""

_META = 'metadata={op_name="jit(f)/block/dot_general" stack_frame_id=2}'
_BRANCHES = "".join(
    f"%{name} (p: f32[16,8]) -> f32[16,8] {{\n  %p = f32[16,8] parameter(0)\n  ROOT {line}\n}}\n\n"
    for name, line in (("yes", ONE_REDUCE), ("no", "%r = f32[16,8] negate(%p)"))
)

WHOLE = (
    program(f"%r = f32[16,8] all-reduce(%p), {G}, {_META}", tables=TABLES),
    program(
        run_loop("outer", "p", known="5"),
        loop("inner", ONE_REDUCE) + "\n" + loop("outer", run_loop("inner", "p")),
    ),
    program(
        run_loop("work", "p", scope="tick(5;8)/turns(3;8)"),
        loop("work", ONE_REDUCE),
    ),
    program(
        "%k = s32[] constant(0)\n"
        "%r = f32[16,8] conditional(%k, %p, %p), branch_computations={%no, %yes}, "
        'metadata={op_name="jit(f)/taken(3,5;8)/cond"}\n'
        "ROOT %q = f32[16,8] collective-permute(%r), source_target_pairs={{0,2},{2,4}}",
        _BRANCHES,
        TABLES,
    ),
    program(
        "%i = s64[4] constant({...})\n"
        "%a = ((f32[16,8]), f32[64,8]) all-gather-start((f32[16,8]) %p), "
        "replica_groups=[2,4]<=[4,2]T(1,0)\n"
        "%r = f32[16,8] ragged-all-to-all(%p, %p, %i, %i, %i, %i), "
        "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'b'}\n"
        "%c = (f32[16,8]{1,0}, /*index=1*/bf16[5]) all-reduce(%p, %p), "
        "replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}"
    ),
)


def matmul(operand: str) -> str:
    """A product of cuBLAS, whose first operand is summed over its second dim."""
    dims = '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}'
    return (
        f'f32[16,16] custom-call({operand}, %p), custom_call_target="__cublas$gemm", '
        f"backend_config={dims}"
    )


def attention(operands: str) -> str:
    """Fused attention of cuDNN."""
    return f'f32[2,16,4,8] custom-call({operands}), custom_call_target="__cudnn$fmhaSoftmax"'


_FUSED = """%fused (a: f32[16,8]) -> f32[16,16] {
  %a = f32[16,8] parameter(0)
  %b = f32[16,8] bitcast(%a)
  %s = f32[4,8] dynamic-slice(%b), dynamic_slice_sizes={4,8}
  ROOT %d = f32[16,16] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""
WHOLE += (
    program(
        "%f = f32[16,16] fusion(%p), kind=kOutput, calls=%fused\n"
        f"%m = {matmul('%p')}\n"
        "%h = f32[2,16,4,8] broadcast(%p)\n"
        f"%x = {attention('%h, %h, %h')}",
        _FUSED,
    ),
)


def damaged(whole: str, others: Sequence[str], chance: random.Random) -> str:
    """A text with one to three things wrong with it.

    Args:
        whole: what is damaged.
        others: texts to splice in.
        chance: decides what and where.
    """
    text = whole
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        text = chance.choice(_DAMAGES)(text, others, chance) or whole
    return text


def _two(text: str, chance: random.Random) -> tuple[int, int]:
    """Two places of a text, mostly near each other."""
    start = chance.randrange(len(text))
    return start, min(len(text), start + chance.choice((1, 2, 5, 20, 100, len(text))))


def _cut_out(text, others, chance):
    start, end = _two(text, chance)
    return text[:start] + text[end:]


def _cut_off(text, others, chance):
    return text[: chance.randrange(len(text))]


def _doubled(text, others, chance):
    start, end = _two(text, chance)
    return text[:end] + text[start:]


def _typed_over(text, others, chance):
    at = chance.randrange(len(text))
    return text[:at] + chance.choice("(){}[]%=,<>\"'\\/*:;. \n\0é0159aR") + text[at + 1 :]


def _typed_in(text, others, chance):
    at = chance.randrange(len(text))
    typed = ("(", ")", "((", "{", "}", '"', "%", "ROOT ", "ENTRY ", "=", "(" * 3000, "-", "\n")
    return text[:at] + chance.choice(typed) + text[at:]


def _other_number(text, others, chance):
    return _replaced(r"\d+", text, lambda _: chance.choice(NUMBERS))(chance)


def _other_name(text, others, chance):
    named = re.findall(r"%[\w.\-]+", text) or ["%p"]
    return _replaced(r"%[\w.\-]+", text, lambda _: chance.choice(named))(chance)


def _other_word(text, others, chance):
    words = re.findall(r"[\w\-]+", text) or ["copy"]
    return _replaced(r"[\w\-]+", text, lambda _: chance.choice(words))(chance)


def _replaced(pattern, text, by) -> Callable[[random.Random], str]:
    """A function of chance: the text with one occurrence of the pattern replaced."""

    def replace(chance):
        found = list(re.finditer(pattern, text))
        if not found:
            return text
        one = chance.choice(found)
        new = by(one)
        return text[: one.start()] + new + text[one.end() :]

    return replace


def _other_order(text, others, chance):
    lines = text.split("\n")
    a, b = (chance.randrange(len(lines)) for _ in range(2))
    lines[a], lines[b] = lines[b], lines[a]
    return "\n".join(lines)


def _spliced(text, others, chance):
    start, end = _two(text, chance)
    other = chance.choice(others)
    first, last = _two(other, chance)
    return text[:start] + other[first:last] + text[end:]


def _joined(text, others, chance):
    lines = text.split("\n")
    at = chance.randrange(len(lines))
    return "\n".join(lines[:at]) + " ".join(lines[at : at + chance.choice((2, 3, len(lines)))])


_DAMAGES = (
    _cut_out, _cut_off, _doubled, _typed_over, _typed_in, _other_number, _other_name, _other_word,
    _other_order, _spliced, _joined,
)  # fmt: skip


def outcome(text: str) -> str:
    """ "read", or the sentence that a text is refused with; anything else that it raises flies."""
    try:
        traffic(text, MESH)
        module = parse(text)
        frames_of(text, 2)
        touched(module)
        replay(module, DEVICE)
        Sums(module, MESH)
        flow = Flow(module)
        for one in collectives(module):
            between(flow, one)
            for part in parts_of(flow, one):
                assert list(flow.back(part.operand, moves))
                assert [list(flow.on(result, keeps_elements)) for result in part.results]
    except ValueError as error:
        sentence = str(error)
        assert sentence and type(error) in (ValueError,), error
        return sentence
    return "read"


def mutants(count: int, whole: Sequence[str] = WHOLE, seed: int = 0) -> Iterator[tuple[int, str]]:
    """So many damaged texts, each with the seed that makes it alone."""
    for number in range(seed, seed + count):
        chance = random.Random(number)
        yield number, damaged(chance.choice(whole), whole, chance)


def survey(count: int, whole: Sequence[str] = WHOLE, seed: int = 0) -> Counter[str]:
    """How many damaged texts were read, and how many refused for which reason."""

    def hangs(*_):
        raise TimeoutError(f"the text of seed {number} hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    told: Counter[str] = Counter()
    number = seed
    try:
        for number, text in mutants(count, whole, seed):
            signal.alarm(SECONDS)
            try:
                said = outcome(text)
            except Exception as error:
                raise AssertionError(f"seed {number}: {type(error).__name__}: {error}") from error
            reason = said.partition("; pass the whole")[0].rpartition(", '")[2].partition("': ")
            told[re.sub(r"'.*'|[\w.]*\d[\w.]*", "_", reason[2] or said)] += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return told


if __name__ == "__main__":
    files = [Path(name).read_text(encoding="utf-8") for name in sys.argv[2:]]
    found = survey(int(sys.argv[1]), (*WHOLE, *files))
    for reason, times in found.most_common(40):
        print(f"{times:7} {reason}")
