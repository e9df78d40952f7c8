"""Do experts share the work evenly, and what does a larger capacity cost?

Command: python -m experiments run experts (about two minutes on two cores).
Expectation: left alone the router sends more to the experts that it already prefers; the auxiliary
loss keeps them nearer to even. Places that are many enough for an uneven share drop fewer choices,
and every one of them travels, filled or not: the all-to-all's bytes grow with the capacity alone.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

SIZES = {
    "layers": 1,
    "width": 64,
    "heads": 4,
    "ffn": 128,
    "sequence": 64,
    "experts": 8,
    "active": 2,
    "steps": 80,
}
TRIED = ((0.0, 1.25), (0.02, 1.25), (0.02, 1.0), (0.02, 2.0))
"""Coefficient of the auxiliary loss, and capacity."""
PLACES = {1.0: 16, 1.25: 20, 2.0: 32}
"""Of one expert in one row: capacity x 2 choices x 64 tokens / 8 experts."""


def _exchanged_bytes(row, capacity: float) -> int:
    """Four all-to-alls a layer, there and back, of rows x experts x places x width in float32."""
    placed = row["batch"] // row["devices"] * SIZES["experts"] * PLACES[capacity]
    return 4 * SIZES["layers"] * placed * SIZES["width"] * 4


experiment = Experiment(
    cases=tuple(
        Case(
            "moe",
            strategy="expert+data",
            mesh="data=2,model=4",
            set={**SIZES, "balance": balance, "capacity": capacity},
        )
        for balance, capacity in TRIED
    ),
    measures=("inspect", "verify"),
    trains=True,
    claims=(
        Claim(
            "every layout is verified",
            lambda rows: all(r["verify"]["ok"] for r in rows),
            needs=4,
        ),
        Claim(
            "without the auxiliary loss the busiest expert gets more, and more is dropped",
            lambda rows: all(
                rows[0]["train"][name] > 1.1 * rows[1]["train"][name]
                for name in ("test_busiest", "test_dropped")
            ),
            needs=4,
        ),
        Claim(
            "the more places, the fewer choices are dropped",
            lambda rows: (
                rows[2]["train"]["test_dropped"]
                > rows[1]["train"]["test_dropped"]
                > rows[3]["train"]["test_dropped"]
            ),
            needs=4,
        ),
        Claim(
            "the all-to-alls' bytes are those of the places, to the byte",
            lambda rows: all(
                communication_bytes(row, "all-to-all") == _exchanged_bytes(row, capacity)
                for row, (_, capacity) in zip(rows, TRIED, strict=True)
            ),
            needs=4,
        ),
    ),
    columns=(
        "strategy",
        "train.test_busiest",
        "train.test_dropped",
        "train.test_next_token",
        "communication.model",
        "verify.max_relative_error",
    ),
)
