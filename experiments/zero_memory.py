"""What does each stage of ZeRO take off a device, and what does it say on the wire instead?

Command: python -m experiments run zero_memory (at most two minutes of processor time).
Expectation: with P bytes of parameters on N = 8 devices, and Adam's two moments, as in figure 1 of
    Rajbhandari et al. (2020): plain data parallelism holds P + P + 2 P on each, stage 1 cuts the
    moments to 2 P / N, stage 2 the gradients to P / N too, stage 3 (fsdp) the parameters as well,
    all but arrays of fewer than 16,384 elements a layer. The losses are the same. On a ring, stages
    1 and 2 send what data parallelism sends; stage 3 gathers the weights of layers once more, and
    so sends half as much again. In manual mode, because XLA for CPUs spells the reduce-scatter of
    auto mode as an all-reduce and a slice.
"""

from itertools import pairwise
from math import prod

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, said, same_losses

DEVICES = 8
WHOLE_BELOW = 16_384
STAGES = {
    "data": frozenset(),
    "zero1": frozenset({"moment"}),
    "zero2": frozenset({"moment", "gradient"}),
    "fsdp": frozenset({"moment", "gradient", "parameter"}),
}
"""Strategy -> what it keeps in pieces: ZeRO's stages 0 to 3."""

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


def _cut_bytes(row, *, layers_twice: bool = False) -> int:
    """Bytes of the parameters that are large enough to be cut, from their shapes alone."""
    total = 0
    for array in row["inspect"]["arrays"]:
        sizes = dict(zip(array["dims"], array["shape"], strict=True))
        stacked = sizes.pop("layers", 1)
        if prod(sizes.values()) >= WHOLE_BELOW:
            bytes_once = 4 * stacked * prod(sizes.values())
            total += bytes_once * (2 if layers_twice and stacked > 1 else 1)
    return total


def _holds_what_was_worked_out(row) -> bool:
    whole, cut = row["parameter_bytes"], _cut_bytes(row)
    pieces = whole - cut + cut // DEVICES
    in_pieces = STAGES[row["strategy"]]
    return all(
        row["held"][f"{what}_bytes"] == copies * (pieces if what in in_pieces else whole)
        for what, copies in (("parameter", 1), ("gradient", 1), ("moment", 2))
    )


def _ring_bytes(row) -> int:
    """Bytes that a ring sends a device, times N / (N - 1): an all-reduce goes round twice."""
    return sum(
        times * said(row, kind, "data")
        for kind, times in (("all-reduce", 2), ("reduce-scatter", 1), ("all-gather", 1))
    )


def _says_what_was_worked_out(row) -> bool:
    expected = 2 * row["parameter_bytes"]
    if "parameter" in STAGES[row["strategy"]]:
        expected += _cut_bytes(row, layers_twice=True) - _cut_bytes(row)
    return 0 <= _ring_bytes(row) - expected <= SCALAR_BYTES


experiment = Experiment(
    cases=tuple(
        Case("transformer", strategy=s, mesh=f"data={DEVICES}", mode="manual", set=SIZES)
        for s in STAGES
    ),
    measures=("held", "inspect", "train", "verify"),
    claims=(
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=4
        ),
        Claim("every stage has the same losses", same_losses, needs=4),
        Claim(
            "each holds P or, of what it cuts, P / 8: parameters, gradients and twice the moments",
            lambda rows: all(_holds_what_was_worked_out(r) for r in rows),
            needs=4,
        ),
        Claim(
            "at least 99 % of the parameter bytes are large enough to be cut",
            lambda rows: all(_cut_bytes(r) >= 0.99 * r["parameter_bytes"] for r in rows),
            needs=4,
        ),
        Claim(
            "each stage holds less than the last, and stage 3 an eighth of stage 0, to 5 %",
            lambda rows: (
                all(a["held"]["total_bytes"] > b["held"]["total_bytes"] for a, b in pairwise(rows))
                and rows[-1]["held"]["total_bytes"]
                <= 1.05 * rows[0]["held"]["total_bytes"] / DEVICES
            ),
            needs=4,
        ),
        Claim(
            "on a ring stages 0 to 2 send 2 P, and stage 3 the cut layers once more",
            lambda rows: all(_says_what_was_worked_out(r) for r in rows),
            needs=4,
        ),
    ),
    columns=(
        "strategy",
        "held.parameter_bytes",
        "held.gradient_bytes",
        "held.moment_bytes",
        "said.all",
    ),
)
