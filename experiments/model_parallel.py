"""What does sharding the matrices save in memory, and what does it add in communication?

Command: python -m experiments run model_parallel (about two minutes on two cores).
Expectation: the matrices' bytes per device fall by the size of the model axis; the norms stay
replicated. The collectives are all-reduces of activations only: two a block forward and two
backward, each of batch x sequence x width, whatever the number of devices; never a parameter.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

SIZES = {
    "layers": 2,
    "width": 64,
    "heads": 8,
    "kv_heads": 8,
    "ffn": 256,
    "sequence": 32,
    "vocabulary": 64,
}
BLOCK_SUMS = 4 * SIZES["layers"]
"""All-reduces inside the blocks: after attention and after the feed-forward, there and back."""


def _activation_bytes(row) -> int:
    return row["batch"] * SIZES["sequence"] * SIZES["width"] * 4


def _sharded_bytes(row) -> int:
    """Bytes of the parameters that are sharded, before sharding."""
    return sum(a["bytes"] for a in row["inspect"]["arrays"] if any(a["spec"]))


def _falls(row) -> bool:
    replicated = row["parameter_bytes"] - _sharded_bytes(row)
    return row["parameter_bytes_per_device"] == replicated + _sharded_bytes(row) // row["devices"]


experiment = Experiment(
    cases=tuple(
        Case("transformer", strategy="tensor", mesh=f"model={n}", set=SIZES) for n in (2, 4, 8)
    ),
    measures=("inspect", "verify"),
    claims=(
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=3
        ),
        Claim(
            "bytes per device = replicated norms + matrices / devices",
            lambda rows: all(_falls(r) for r in rows),
            needs=3,
        ),
        Claim(
            "at least 99 % of the parameter bytes are sharded",
            lambda rows: all(_sharded_bytes(r) >= 0.99 * r["parameter_bytes"] for r in rows),
            needs=3,
        ),
        Claim(
            "nothing but all-reduces over the model axis",
            lambda rows: all(
                communication_bytes(r) == communication_bytes(r, "all-reduce", "model") > 0
                for r in rows
            ),
            needs=3,
        ),
        Claim(
            "at least four activations a block, and less than two more for embedding and head",
            lambda rows: all(
                BLOCK_SUMS * _activation_bytes(r)
                <= communication_bytes(r)
                <= (BLOCK_SUMS + 3) * _activation_bytes(r)
                for r in rows
            ),
            needs=3,
        ),
    ),
    columns=(
        "mesh",
        "parameter_bytes_per_device",
        "communication.all",
        "verify.max_relative_error",
    ),
)
