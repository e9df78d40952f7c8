"""Does splitting a mini-batch over replicas change anything but who computes it?

Command: python -m experiments run data_parallel (under a minute on two cores).
Expectation: no. The gradient of a weighted mean is a sum over examples divided by their weight, so
replicas that sum theirs by all-reduce have the gradient of the whole batch, to rounding. What is
new is communication: every gradient once a step, as many bytes as the parameters have, whatever the
replicas.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes, same_losses

SCALARS_BYTES = 64
"""Room for the loss, its weight and the accuracy, which are summed too."""


experiment = Experiment(
    cases=(
        Case("mlp", strategy="single", mesh="data=1", set={"steps": 60}),
        *(Case("mlp", strategy="data", mesh=f"data={n}", set={"steps": 60}) for n in (2, 4, 8)),
    ),
    measures=("inspect", "verify"),
    trains=True,
    claims=(
        Claim("every loss is that of one device", same_losses, needs=4),
        Claim(
            "the test accuracy is that of one device, to one image in a hundred",
            lambda rows: (
                max(r["train"]["test_accuracy"] for r in rows)
                - min(r["train"]["test_accuracy"] for r in rows)
                <= 0.01
            ),
            needs=4,
        ),
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=4
        ),
        Claim(
            "one device has no collectives; replicas all-reduce the parameters' bytes, and scalars",
            lambda rows: (
                communication_bytes(rows[0]) == 0
                and all(
                    0
                    <= communication_bytes(r, "all-reduce", "data") - r["parameter_bytes"]
                    <= SCALARS_BYTES
                    and communication_bytes(r) == communication_bytes(r, "all-reduce", "data")
                    for r in rows[1:]
                )
            ),
            needs=4,
        ),
    ),
    columns=("strategy", "mesh", "train.test_accuracy", "train.last_loss", "communication.all"),
)
