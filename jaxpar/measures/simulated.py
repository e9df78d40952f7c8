"""Simulated: what the collectives of simulated CPU devices show otherwise than those of GPUs."""

from jaxpar.measures.traffic import TrafficRow
from jaxpar.program.record import Program

OPTION = "--hardware h100"


def differences(program: Program, rows: tuple[TrafficRow, ...]) -> str:
    """What to know of a program's collectives, in a sentence; "" where there is nothing to know.

    Seen with jax 0.10.2: XLA for CPUs has no pass that makes a reduce-scatter of an all-reduce and
    a slice, and sums the gradients that several products give one array one by one.
    """
    sums = [row for row in rows if row.kind == "all-reduce"]
    if program.hardware.kind != "simulated" or not sums:
        return ""
    strategy = program.step.layout.strategy
    told, summed = [], {axis for row in sums for axis in row.axes}
    stores = summed & set(strategy.store)
    if stores and not any(row.kind == "reduce-scatter" for row in rows):
        told.append("writes a reduce-scatter as an all-reduce and a slice")
    if any(strategy.roles_on(axis) & {"inner", "heads"} for axis in summed):
        told.append(
            "may sum one by one what XLA for GPUs sums at once (such as the gradients that "
            "queries, keys and values give their input)"
        )
    if not told:
        return ""
    return (
        f"these are the collectives of simulated CPU devices: XLA for CPUs {', and '.join(told)}, "
        f"so that counts and bytes differ from a GPU's, which {OPTION} shows"
    )
