"""One decoder on eight devices under every strategy: is it the same, and at what cost?

Command: python -m experiments run all_together (under four minutes on two cores).
Expectation: every layout computes what one device computes, to 1e-9 in float64, and its collectives
are those that its strategy states and no others. Parameters on a device fall to an eighth where
weights are sharded, and not at all under plain data parallelism, which pays with an all-reduce of
them. Parameter averaging is another algorithm, and equals one device that does the same.
"""

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

SIZES = {
    "layers": 2,
    "width": 32,
    "heads": 8,
    "kv_heads": 8,
    "ffn": 64,
    "vocabulary": 64,
    "sequence": 16,
    "batch": 16,
}
SHARD_ALL = {"whole_below": 256}
"""The arrays of so small a decoder are all below the usual threshold."""

WAYS = (
    ("single", "data=8", {}),
    ("data", "data=8", {}),
    ("zero1", "data=8", SHARD_ALL),
    ("zero2", "data=8", SHARD_ALL),
    ("fsdp", "data=8", SHARD_ALL),
    ("replica+fsdp", "replica=2,data=4", SHARD_ALL),
    ("tensor", "model=8", {}),
    ("sequence", "model=8", {}),
    ("context", "model=8", {}),
    ("hybrid", "data=4,model=2", {}),
    ("fsdp+tensor", "data=4,model=2", SHARD_ALL),
    ("data+pipeline", "pipe=2,data=4", {"microbatches": 2}),
    ("fsdp+tensor+pipeline", "pipe=2,data=2,model=2", {**SHARD_ALL, "microbatches": 2}),
    ("local_sgd", "replica=8", {}),
)


def _named(rows, strategy: str):
    return next(row for row in rows if row["strategy"] == strategy)


def _share(row) -> float:
    return row["parameter_bytes_per_device"] / row["parameter_bytes"]


experiment = Experiment(
    cases=tuple(
        Case("transformer", strategy=strategy, mesh=mesh, set={**SIZES, **more})
        for strategy, mesh, more in WAYS
    ),
    measures=("verify", "inspect"),
    claims=(
        Claim(
            "every layout equals one device, in float64",
            lambda rows: all(r["verify"]["ok"] and r["verify"]["dtype"] == "float64" for r in rows),
            needs=len(WAYS),
        ),
        Claim(
            "the collectives of each are those that its strategy states",
            lambda rows: all(r["inspect"]["ok"] for r in rows),
            needs=len(WAYS),
        ),
        Claim(
            "one device has no collectives; data parallelism all-reduces the parameters' bytes",
            lambda rows: (
                communication_bytes(_named(rows, "single")) == 0
                and 1
                <= communication_bytes(_named(rows, "data"), "all-reduce")
                / _named(rows, "data")["parameter_bytes"]
                <= 1.01
            ),
            needs=len(WAYS),
        ),
        Claim(
            "per device: fsdp an eighth of the parameters, tensor nearly, data all of them",
            lambda rows: (
                _share(_named(rows, "data")) == 1
                and _share(_named(rows, "fsdp")) < 0.14
                and _share(_named(rows, "tensor")) < 0.14
            ),
            needs=len(WAYS),
        ),
        Claim(
            "stages permute activations, and replicas of local SGD have no collective in an update",
            lambda rows: (
                communication_bytes(_named(rows, "data+pipeline"), "collective-permute", "pipe") > 0
                and not _named(rows, "local_sgd")["inspect"]["collectives"]
            ),
            needs=len(WAYS),
        ),
    ),
    columns=(
        "strategy",
        "mesh",
        "parameter_bytes_per_device",
        "communication.all",
        "inspect.memory.total_bytes",
        "verify.max_relative_error",
    ),
)
