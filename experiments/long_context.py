"""What does a long sequence cost in memory when it is sharded, and what when it is not?

Command: python -m experiments run long_context (80 seconds on two cores; nothing is run).
Expectation: with whole sequences the scores of attention outgrow all else, four times as many for
twice the sequence. In Ulysses a device holds the scores of a share of heads instead of a share of
rows: as many. A ring never holds them, and grows in step with the sequence. Its collectives, a
layer: 3 (n - 1) shards of keys and values round the ring, less at most one that forward and
backward share; all-to-alls of 4 shards forward and 4 backward in Ulysses. The numbers of both
exchanges are proved at small sizes by tests/laws/test_context.py.
"""

from importlib.util import find_spec
from itertools import pairwise

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

# Memory is that of a described H100's program, where XLA's compiler for it is installed.
COMPILER = ("jax_plugins", "jax_plugins.xla_cuda13")
HARDWARE = "h100" if all(find_spec(name) for name in COMPILER) else "cpu"
WAYS = 4
LENGTHS = (4096, 8192, 16384)
SIZES = {
    "layers": 2,
    "width": 64,
    "heads": 4,
    "kv_heads": 4,
    "ffn": 128,
    "vocabulary": 64,
    "batch": WAYS,
    "unroll": 1,
}
WAY = {"data": f"data={WAYS}", "ring": f"model={WAYS}", "ulysses": f"model={WAYS}"}


def _case(way: str, length: int) -> Case:
    chosen = {} if way == "data" else {"exchange": way}
    return Case(
        "transformer",
        strategy="data" if way == "data" else "context",
        mesh=WAY[way],
        hardware=HARDWARE,
        set={**SIZES, **chosen, "sequence": length},
    )


def _of(rows, way: str):
    """The rows of one way, shortest sequence first: they stand in the order of the cases."""
    at = list(WAY).index(way) * len(LENGTHS)
    return rows[at : at + len(LENGTHS)]


def _growth(rows, way: str) -> list[float]:
    """By how much XLA's temporaries grow with each doubling of the sequence."""
    temporary = [row["inspect"]["memory"]["temporary_bytes"] for row in _of(rows, way)]
    return [after / before for before, after in pairwise(temporary)]


def _piece_bytes(length: int) -> int:
    """Bytes of one device's keys, in float32; its queries, values and results are as many."""
    return SIZES["batch"] * length // WAYS * SIZES["width"] * 4


def _ring_moves_its_formula(rows) -> bool:
    return all(
        (3 * (WAYS - 1) - 1) * 2 * _piece_bytes(length) * SIZES["layers"]
        <= communication_bytes(row, "collective-permute", "model")
        <= 1.02 * 3 * (WAYS - 1) * 2 * _piece_bytes(length) * SIZES["layers"]
        for row, length in zip(_of(rows, "ring"), LENGTHS, strict=True)
    )


def _ulysses_moves_its_formula(rows) -> bool:
    return all(
        communication_bytes(row, "all-to-all", "model")
        == 8 * _piece_bytes(length) * SIZES["layers"]
        for row, length in zip(_of(rows, "ulysses"), LENGTHS, strict=True)
    )


ALL = len(WAY) * len(LENGTHS)
experiment = Experiment(
    cases=tuple(_case(way, length) for way in WAY for length in LENGTHS),
    measures=("inspect",),
    claims=(
        Claim(
            # 2.01 and 2.23 were measured: XLA's schedule is not the same at every length.
            "a ring's temporaries grow at most 2.4 times when the sequence doubles",
            lambda rows: all(g <= 2.4 for g in _growth(rows, "ring")),
            needs=ALL,
        ),
        Claim(
            "those of unsharded sequences, and of Ulysses, grow at least 3 times",
            lambda rows: all(g >= 3 for way in ("data", "ulysses") for g in _growth(rows, way)),
            needs=ALL,
        ),
        Claim(
            "a ring sends 3 (n - 1) shards of keys and values a layer, or one less",
            _ring_moves_its_formula,
            needs=ALL,
        ),
        Claim(
            "Ulysses trades queries, keys, values and results once each way",
            _ulysses_moves_its_formula,
            needs=ALL,
        ),
    ),
    columns=("strategy", "mesh", "inspect.memory.temporary_bytes", "communication.model"),
)
