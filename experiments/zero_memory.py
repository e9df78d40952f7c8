"""What memory does each stage of ZeRO save per device, and what does it cost in communication?

Command: python -m experiments run zero_memory (at most two minutes of processor time).
Expectation: with P bytes of parameters on N = 8 devices, and Adam's two moments, as in figure 1 of
Rajbhandari et al. (2020): plain data parallelism has P + P + 2 P on each, stage 1 shards the
moments to 2 P / N, stage 2 the gradients to P / N too, stage 3 (fsdp) the parameters as well, all
but arrays of fewer than 16,384 elements a layer. The losses are the same. On a ring, stages 1 and 2
send what data parallelism sends; stage 3 gathers the weights of layers once more, and so sends half
as much again. In manual mode, because XLA for CPUs spells the reduce-scatter of auto mode as an
all-reduce and a slice.
"""

from itertools import pairwise
from math import prod

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes, same_losses

DEVICES = 8
WHOLE_BELOW = 16_384
STAGES = {
    "data": frozenset(),
    "zero1": frozenset({"optimizer_state"}),
    "zero2": frozenset({"optimizer_state", "gradient"}),
    "fsdp": frozenset({"optimizer_state", "gradient", "parameter"}),
}
"""Strategy -> what it shards between uses: ZeRO's stages 0 to 3."""

SIZES = {
    "layers": 2,
    "width": 128,
    "heads": 8,
    "ffn": 256,
    "sequence": 16,
    "batch": 16,
    "unroll": 1,
    "steps": 5,
}
SCALAR_BYTES = 512
"""Room for the loss, the accuracy and a square norm an array, which the formulas leave out."""


def _large_bytes(row, *, layers_twice: bool = False) -> int:
    """Bytes of the parameters that are large enough to be sharded, from their shapes alone."""
    total = 0
    for array in row["inspect"]["arrays"]:
        sizes = dict(zip(array["dims"], array["shape"], strict=True))
        stacked = sizes.pop("layers", 1)
        if prod(sizes.values()) >= WHOLE_BELOW:
            bytes_once = 4 * stacked * prod(sizes.values())
            total += bytes_once * (2 if layers_twice and stacked > 1 else 1)
    return total


def _has_what_was_worked_out(row) -> bool:
    whole, large = row["parameter_bytes"], _large_bytes(row)
    share = whole - large + large // DEVICES
    sharded = STAGES[row["strategy"]]
    return all(
        row["memory"][f"{what}_bytes"] == copies * (share if what in sharded else whole)
        for what, copies in (("parameter", 1), ("gradient", 1), ("optimizer_state", 2))
    )


def _ring_bytes(row) -> float:
    """Bytes that a ring sends a device, times N / (N - 1): an all-reduce goes round twice."""
    return sum(
        times * communication_bytes(row, kind, "data")
        for kind, times in (("all-reduce", 2), ("reduce-scatter", 1), ("all-gather", 1))
    )


def _sends_what_was_worked_out(row) -> bool:
    expected = 2 * row["parameter_bytes"]
    if "parameter" in STAGES[row["strategy"]]:
        expected += _large_bytes(row, layers_twice=True) - _large_bytes(row)
    return 0 <= _ring_bytes(row) - expected <= SCALAR_BYTES


experiment = Experiment(
    cases=tuple(
        Case("transformer", strategy=s, mesh=f"data={DEVICES}", mode="manual", set=SIZES)
        for s in STAGES
    ),
    measures=("memory", "inspect", "verify"),
    trains=True,
    claims=(
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=4
        ),
        Claim("every stage has the same losses", same_losses, needs=4),
        Claim(
            "each device has P or, of what is sharded, P / 8: parameters, gradients, 2 moments",
            lambda rows: all(_has_what_was_worked_out(r) for r in rows),
            needs=4,
        ),
        Claim(
            "at least 99 % of the parameter bytes are large enough to be sharded",
            lambda rows: all(_large_bytes(r) >= 0.99 * r["parameter_bytes"] for r in rows),
            needs=4,
        ),
        Claim(
            "each stage takes less than the last, and stage 3 an eighth of stage 0, to 5 %",
            lambda rows: (
                all(
                    a["memory"]["total_bytes"] > b["memory"]["total_bytes"]
                    for a, b in pairwise(rows)
                )
                and rows[-1]["memory"]["total_bytes"]
                <= 1.05 * rows[0]["memory"]["total_bytes"] / DEVICES
            ),
            needs=4,
        ),
        Claim(
            "on a ring stages 0 to 2 send 2 P, and stage 3 the sharded layers once more",
            lambda rows: all(_sends_what_was_worked_out(r) for r in rows),
            needs=4,
        ),
    ),
    columns=(
        "strategy",
        "memory.parameter_bytes",
        "memory.gradient_bytes",
        "memory.optimizer_state_bytes",
        "communication.all",
    ),
)
