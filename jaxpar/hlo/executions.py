"""How often each computation of a compiled program runs: loops counted, branches by their share."""

import re
from dataclasses import dataclass
from fractions import Fraction

from jaxpar.core.scopes import TAKEN, TURNS
from jaxpar.hlo.parse import Computation, Instruction, Module

_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d{1,18})"\}')
_INDEX = re.compile(r"index=(\d{1,18})")
_INTEGER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True)
class Times:
    """Runs in one execution of the program; if not exact, a loop or branch was counted as one.

    Where devices take different branches, the mean over devices; it need not be whole.
    """

    times: int | Fraction
    exact: bool


def executions(module: Module) -> dict[str, Times]:
    """Return how often each computation that control reaches runs; others (reducers) are absent.

    A branch of a conditional counts as run once each time, and is not exact; unless whoever traced
    it said how often each is taken, by a name scope `taken(a,b,...;n)` around it: branch 0 a times
    of n, branch 1 b times, and so on.
    """
    runs = {module.entry: Times(1, True)}
    for computation in reversed(tuple(module.computations.values())):  # callees are printed first
        caller = runs.get(computation.name)
        if caller is None:
            continue
        for i in computation.instructions:
            if i.opcode in ("while", "call", "fusion", "conditional", "async-start"):
                n, sure = trip_count(module, computation, i)
                shares = shares_taken(i)
                for k, (role, name) in enumerate(i.calls):
                    times = caller.times * (n + (role == "condition"))
                    if shares:
                        times, sure = caller.times * shares[k], True
                    so_far = runs.get(name, Times(0, True))
                    exact = sure and caller.exact and so_far.exact
                    runs[name] = Times(so_far.times + times, exact)
    return runs


def shares_taken(i: Instruction) -> tuple[Fraction, ...]:
    """Return how often each branch of a conditional is taken, where its name scope says so."""
    said = TAKEN.search(i.op_name) if i.opcode == "conditional" else None
    if said is None:
        return ()
    shares = tuple(Fraction(int(n), int(said[2])) for n in said[1].split(","))
    # XLA may spell branches 0 and 1 as those of a predicate: it prints the true one first.
    if [role for role, _ in i.calls] == ["true_computation", "false_computation"]:
        shares = shares[::-1]
    # A scope that was meant for another number of branches says nothing of these.
    return shares if len(shares) == len(i.calls) else ()


def trip_count(
    module: Module, computation: Computation, i: Instruction
) -> tuple[int | Fraction, bool]:
    """Return how often one run of an instruction runs what it calls, and whether that is sure.

    Once, unless it is a `while`: then as a name scope `turns(a;n)` around it says, a times in n
    runs; or the compiler's own count where it gives one; else the bound of a condition `k < bound`,
    when k is seen to start at 0 and grow by 1; else 1, not sure.
    """
    if i.opcode != "while":
        return 1, i.opcode != "conditional"
    if said := TURNS.search(i.op_name):
        return Fraction(int(said[1]), int(said[2])), True
    if known := _TRIP_COUNT.search(i.attributes):
        return int(known[1]), True
    called = {role: module.computations[name] for role, name in i.calls}
    condition, root = called["condition"], called["body"].root
    test, where = _behind(module, condition, condition.root.name)
    reads = [r for r in condition.instructions if r.opcode == "get-tuple-element"]
    init = computation.by_name[i.operands[0]]
    counts = test.opcode == "compare" and "direction=LT" in test.attributes and len(reads) == 1
    if counts and init.opcode == root.opcode == "tuple":
        bound = _constants(where, test.operands[1:])
        start, _ = _behind(module, computation, _member(init, reads[0]))
        step, inside = _behind(module, called["body"], _member(root, reads[0]))
        by_one = step.opcode == "add" and _constants(inside, step.operands) == [1]
        if bound and by_one and start.opcode == "constant" and start.arguments == "0":
            return bound[0], True
    return 1, False


def _member(made: Instruction, read: Instruction) -> str:
    """The operand of a tuple that a get-tuple-element would read of it."""
    index = _INDEX.search(read.attributes)
    if index is None or int(index[1]) >= len(made.operands):
        raise ValueError(f"{read.name}: no index into the {len(made.operands)} of {made.name}")
    return made.operands[int(index[1])]


def _behind(module: Module, where: Computation, name: str) -> tuple[Instruction, Computation]:
    """Return what computes a value, through copies and fusions, and the computation it is in."""
    i = where.by_name[name]
    while i.opcode in ("copy", "bitcast", "fusion"):
        if i.opcode == "fusion":
            where = module.computations[i.calls[0][1]]
        i = where.root if i.opcode == "fusion" else where.by_name[i.operands[0]]
    return i, where


def _constants(where: Computation, names: tuple[str, ...]) -> list[int]:
    """The values of those named instructions that are integer constants."""
    found = [where.by_name[name] for name in names]
    literals = [i.arguments for i in found if i.opcode == "constant"]
    return [int(literal) for literal in literals if _INTEGER.fullmatch(literal)]
