"""K sub-models of M devices each: where should eight devices go, to more stages or to wider ones?

Command: python -m experiments run submodels (about three minutes on two cores).
Expectation: the same losses from all four splits, and the same share of the layers' parameters on
each device. Wider stages communicate more: every layer sums four activations a microbatch over the
devices of its stage, however few they are. More stages send one activation a tick, and have a
bubble of (K - 1) / (8 + K - 1) with eight microbatches.
"""

from itertools import pairwise

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes, same_losses

DEVICES, LAYERS, MICROBATCHES = 8, 8, 8
SIZES = {
    "layers": LAYERS,
    "width": 64,
    "heads": 8,
    "kv_heads": 8,
    "ffn": 128,
    "vocabulary": 256,
    "sequence": 32,
    "batch": 16,
    "microbatches": MICROBATCHES,
    "steps": 3,
}
SPLITS = ((1, 8), (2, 4), (4, 2), (8, 1))
ACTIVATION_BYTES = SIZES["batch"] // MICROBATCHES * SIZES["sequence"] * SIZES["width"] * 4


def _stages(row) -> int:
    return row["mesh"].get("pipe", 1)


def _bubble(row) -> float:
    return row["train"].get("last_bubble", 0.0)


def _layer_bytes(row) -> int:
    """Bytes per device of the layers' matrices, which are sharded over both axes."""
    return sum(
        a["bytes_per_device"]
        for a in row["inspect"]["arrays"]
        if a["dims"][0] == "layers" and len(a["dims"]) > 2
    )


def _summed_in_layers(row) -> int:
    """Bytes that a stage's layers have to sum: four activations a layer and microbatch."""
    return 4 * LAYERS // _stages(row) * MICROBATCHES * ACTIVATION_BYTES


experiment = Experiment(
    cases=tuple(
        Case("transformer", strategy="tensor+pipeline", mesh=f"pipe={k},model={m}", set=SIZES)
        for k, m in SPLITS
    ),
    measures=("inspect",),
    trains=True,
    claims=(
        Claim("every split has the same losses", same_losses, needs=len(SPLITS)),
        Claim(
            "each device has an eighth of the layers' matrices, whatever the split",
            lambda rows: (
                len({_layer_bytes(row) for row in rows}) == 1
                and all(
                    8 * _layer_bytes(row)
                    == sum(
                        a["bytes"]
                        for a in row["inspect"]["arrays"]
                        if a["dims"][0] == "layers" and len(a["dims"]) > 2
                    )
                    for row in rows
                )
            ),
            needs=len(SPLITS),
        ),
        Claim(
            "the bubble fraction is (K - 1) / (M + K - 1), as counted while the ticks pass",
            lambda rows: all(
                abs(_bubble(r) - (_stages(r) - 1) / (MICROBATCHES + _stages(r) - 1)) < 1e-6
                for r in rows
            ),
            needs=len(SPLITS),
        ),
        Claim(
            "over pipe, one activation a permute; none with one stage",
            lambda rows: all(
                communication_bytes(r, "collective-permute")
                == (r["inspect"]["schedule"] or {"permutes": 0})["permutes"] * ACTIVATION_BYTES
                for r in rows
            ),
            needs=len(SPLITS),
        ),
        Claim(
            "over model, four activations a layer of the stage, and none with one device a stage",
            lambda rows: (
                all(communication_bytes(r, axis="model") >= _summed_in_layers(r) for r in rows[:-1])
                and communication_bytes(rows[-1], axis="model") == 0
            ),
            needs=len(SPLITS),
        ),
        Claim(
            "with every halving of a stage's devices its sums fall",
            lambda rows: all(
                communication_bytes(a, axis="model") > communication_bytes(b, axis="model")
                for a, b in pairwise(rows)
            ),
            needs=len(SPLITS),
        ),
    ),
    columns=(
        "mesh",
        "parameter_bytes_per_device",
        "communication.pipe",
        "communication.model",
        "train.last_bubble",
        "train.last_loss",
    ),
)
