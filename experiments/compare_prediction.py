"""How far are predicted step times from those of the same programs, run on the devices at hand?

Commands: python -m experiments calibrate --hardware local --out runs/here
          python -m experiments run compare_prediction --hardware runs/here/here.json
Expectation: on a GPU the median error is at most 15 %, for products, memory and attention were
measured there a minute before; what is left is what the replay leaves out. One device: nothing is
said of collectives. On CPUs the times of small programs vary by more than that, and XLA for CPUs is
not what the replay is made for: there the figures are shown, and no bound is claimed.
"""

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, Rows

LLAMA = {"gated": True, "activation": "silu", "vocabulary": 32_000, "sequence": 4096, "unroll": 1}
WIDE = {"width": 2048, "layers": 16, "heads": 16, "kv_heads": 16, "ffn": 5632, **LLAMA}
"""A decoder of 0.9 billion parameters."""

BF16 = {"compute_dtype": "bfloat16"}
CASES = {
    "a decoder, recomputed": ("transformer", {**WIDE, **BF16, "remat": "full", "batch": 8}),
    "a decoder, products kept": ("transformer", {**WIDE, **BF16, "remat": "minimal", "batch": 4}),
    "a decoder in microbatches": (
        "transformer", {**WIDE, **BF16, "remat": "full", "batch": 16, "microbatches": 4},
    ),
    "long rows": (
        "transformer", {**WIDE, **BF16, "remat": "full", "sequence": 16_384, "batch": 2},
    ),
    "GPT-2": ("gpt2", {**BF16, "batch": 32}),
    "GPT-2 in float32": ("gpt2", {"batch": 16}),
    "a mixture of experts": (
        "moe", {**BF16, "width": 1024, "ffn": 4096, "layers": 8, "heads": 16, "kv_heads": 16,
                "sequence": 2048, "batch": 8},
    ),
    "a perceptron": ("mlp", {"width": 8192, "hidden": 4, "batch": 8192}),
}  # fmt: skip
"""What it is -> (model, fields)."""


def compared(cases: Mapping[str, tuple[str, Mapping[str, Any]]], hardware: str) -> Experiment:
    """The experiment that predicts steps of these programs on one device, and times them."""
    names = tuple(cases)

    def adds(number: int, row: Mapping[str, Any]) -> Mapping[str, Any]:
        predicted = row["predict"].get("step_seconds")
        measured = row["steps"]["step_seconds"]
        inside = predicted and row["predict"]["low_seconds"] <= measured
        return {
            "what": names[number],
            "measured_seconds": measured,
            "predicted_seconds": predicted,
            "error": predicted and predicted / measured - 1,
            "within": bool(inside and measured <= row["predict"]["high_seconds"]),
        }

    return Experiment(
        cases=tuple(
            Case(model, strategy="single", mesh="data=1", hardware=hardware, set=fields)
            for model, fields in cases.values()
        ),
        measures=("steps", "predict"),
        claims=(
            Claim("each program is predicted, and timed", _is_predicted, needs=len(cases)),
            Claim("on GPUs the median error is at most 15 %", _is_near_on_gpus, needs=len(cases)),
        ),
        columns=("what", "measured_seconds", "predicted_seconds", "error", "within"),
        adds=adds,
        remarks=remarks,
    )


def _is_predicted(rows: Rows) -> bool:
    """Whether the hardware's speed was known."""
    return all(row["error"] is not None for row in rows)


def _is_near_on_gpus(rows: Rows) -> bool:
    """Whether errors are small; of CPUs nothing is claimed."""
    if any("cpu" in row["steps"]["devices"].lower() for row in rows):
        return True
    return median(abs(row["error"]) for row in rows if row["error"] is not None) <= 0.15


def remarks(rows: Rows) -> Iterator[str]:
    """The errors, or what is to be done that there are some."""
    errors = [abs(row["error"]) for row in rows if row.get("error") is not None]
    if not errors:
        yield (
            "no speed is known of this hardware: calibrate --hardware local writes here.json, "
            "which run compare_prediction --hardware here.json reads"
        )
        return
    inside = sum(row["within"] for row in rows if row.get("error") is not None)
    yield (
        f"{len(errors)} programs on {rows[0]['steps']['devices']}: median error "
        f"{median(errors):.1%}, worst {max(errors):.1%}, {inside} within the interval"
    )


experiment = compared(CASES, "local")
