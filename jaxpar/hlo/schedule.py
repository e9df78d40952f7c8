"""The schedule of a compiled program: what runs between the start and the done of a collective."""

from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.flow import Flow
from jaxpar.hlo.parse import Computation, Instruction

_NO_WORK = frozenset(
    "parameter constant tuple get-tuple-element bitcast opt-barrier after-all partition-id "
    "replica-id iota".split()
)
"""Operations that take no time."""

_HANDS_OVER = ("-start", "-done", "-update")


def started(flow: Flow, one: Collective) -> tuple[Computation, Instruction]:
    """The instruction that starts a collective: itself, or what runs its computation."""
    module = flow.module
    for caller, i, _, _ in flow.callers.get(one.computation, ()):
        if i.opcode == "async-start":
            return caller, i
    where = module.computations[one.computation]
    return where, where.by_name[one.name]


def between(flow: Flow, one: Collective) -> tuple[Instruction, ...]:
    """The work that is scheduled between a collective's start and its done; () if it has no done.

    Left out are operations that take no time, and the starts and dones of other collectives.
    """
    where, start = started(flow, one)
    if not one.is_async:
        return ()
    order = [i.name for i in where.instructions]
    begin, last = order.index(start.name), {start.name}
    end = None
    for i in where.instructions[begin + 1 :]:
        if i.opcode.endswith(_HANDS_OVER[1:]) and last & set(i.operands):
            last.add(i.name)
            end = order.index(i.name)
    if end is None:
        return ()
    return tuple(i for i in where.instructions[begin + 1 : end] if _works(i))


def _works(i: Instruction) -> bool:
    """Whether an instruction takes a device's time."""
    return i.opcode not in _NO_WORK and not i.opcode.endswith(_HANDS_OVER)
