"""Eight devices: all for data, all for the model, or some of each?

Command: python -m experiments run hybrid_parallel (about a minute on two cores).
Expectation: the same losses and accuracy from all four splits. Moving devices from data to model
halves the parameters on each and the gradient bytes with them, and adds all-reduces of activations.
"""

from itertools import pairwise

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes, same_losses

SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))


experiment = Experiment(
    cases=tuple(
        Case("mlp", strategy="hybrid", mesh=f"data={d},model={m}", set={"steps": 60})
        for d, m in SPLITS
    ),
    measures=("inspect", "verify"),
    trains=True,
    claims=(
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=4
        ),
        Claim("every split has the same losses", same_losses, needs=4),
        Claim(
            "each classifies at least 96 % of the test images",
            lambda rows: all(r["train"]["test_accuracy"] >= 0.96 for r in rows),
            needs=4,
        ),
        Claim(
            "parameter bytes per device fall with every step towards the model axis",
            lambda rows: all(
                a["parameter_bytes_per_device"] > b["parameter_bytes_per_device"]
                for a, b in pairwise(rows)
            ),
            needs=4,
        ),
        Claim(
            "gradient bytes over data fall too, and an axis of size 1 has no collectives",
            lambda rows: (
                all(
                    communication_bytes(a, axis="data") > communication_bytes(b, axis="data")
                    for a, b in pairwise(rows)
                )
                and communication_bytes(rows[0], axis="model")
                == communication_bytes(rows[-1], axis="data")
                == 0
            ),
            needs=4,
        ),
    ),
    columns=(
        "mesh",
        "parameter_bytes_per_device",
        "communication.data",
        "communication.model",
        "train.test_accuracy",
    ),
)
