"""How seldom may replicas of local SGD synchronise, and what communication does that save?

Command: python -m experiments run parameter_averaging (under a minute on two cores).
Expectation: four replicas, averaged every H updates, all-reduce 1/H of the parameters' bytes per
step, where synchronous data parallelism does all of the gradients' and four scalars. Averaged often
they classify the digits as well; the longer between, the less their average need be worth, and at
the end alone it is that of four networks which each saw a quarter of the rows.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

EVERY = (1, 4, 16, 0)
SYNCHRONOUS, FIRST, AT_END, OUTER = 0, 1, 4, 5
"""Rows of the answer: the baseline, H = 1, averaged at the end only, and DiLoCo."""

MESH, TRAINED = "replica=4", {"steps": 96}


def _averaged(strategy: str, every: int) -> Case:
    return Case("mlp", strategy=strategy, mesh=MESH, set={**TRAINED, "every": every})


def _accuracy(row) -> float:
    return row["train"]["test_accuracy"]


experiment = Experiment(
    cases=(
        Case("mlp", strategy="replica", mesh=MESH, set=TRAINED),
        *(_averaged("local_sgd", every) for every in EVERY),
        _averaged("diloco", 16),
    ),
    measures=("inspect", "verify"),
    trains=True,
    claims=(
        Claim(
            "every layout is verified", lambda rows: all(r["verify"]["ok"] for r in rows), needs=6
        ),
        Claim(
            "bytes per step are the parameters' bytes by H exactly, and none before the end for 0",
            lambda rows: all(
                communication_bytes(row) == (row["parameter_bytes"] / every if every else 0)
                for row, every in zip(rows[FIRST:], (*EVERY, 16), strict=True)
            ),
            needs=6,
        ),
        Claim(
            "synchronous training all-reduces the gradients' bytes and four scalars per step",
            lambda rows: (
                communication_bytes(rows[SYNCHRONOUS]) == rows[SYNCHRONOUS]["parameter_bytes"] + 16
            ),
            needs=6,
        ),
        Claim(
            "averaged every 1, 4 or 16 updates it classifies at least 95 % of the test images",
            lambda rows: all(_accuracy(r) >= 0.95 for r in rows[FIRST:AT_END]),
            needs=6,
        ),
        Claim(
            "averaged at the end alone it is no better than averaged every update",
            lambda rows: _accuracy(rows[AT_END]) <= _accuracy(rows[FIRST]),
            needs=6,
        ),
    ),
    columns=(
        "strategy",
        "inspect.averaging_every",
        "communication.replica",
        "train.test_accuracy",
        "train.test_loss",
        "verify.max_relative_error",
    ),
)
