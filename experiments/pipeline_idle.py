"""What are the bubble fraction and the memory of a pipeline under each schedule?

Command: python -m experiments run pipeline_idle (about three minutes on two cores).
Expectation: with K stages and M microbatches GPipe and 1F1B have a bubble of (K - 1) / (M + K - 1)
of the ticks, V chunks a stage bring that to (K - 1) / (V M + K - 1), and without overlap it is (K -
1) / K whatever M is. The running program counts its idle ticks, and finds just that; ticks are
counted and not timed, since simulated devices share the cores of one machine. All train alike.
GPipe has all M microbatches in flight and 1F1B K: in the program for a GPU the memory of the one
grows with M, that of the other does not.
"""

from importlib.util import find_spec

from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes, same_losses

COMPILER = ("jax_plugins", "jax_plugins.xla_cuda13")
HARDWARE = "h100" if all(find_spec(name) for name in COMPILER) else "cpu"
STAGES, LAYERS, ROWS = 4, 8, 2
SIZES = {
    "layers": LAYERS,
    "width": 64,
    "heads": 4,
    "kv_heads": 4,
    "ffn": 64,
    "vocabulary": 256,
    "sequence": 32,
    "steps": 3,
}
TIMED = (("in_order", 8), ("gpipe", 8), ("one_f_one_b", 8), ("interleaved", 8), ("one_f_one_b", 4))
IN_FLIGHT = (("gpipe", 8), ("gpipe", 16), ("one_f_one_b", 8), ("one_f_one_b", 16))


def _case(schedule: str, microbatches: int, **more) -> Case:
    return Case(
        "transformer",
        strategy="pipeline",
        mesh=f"pipe={STAGES}",
        set={**SIZES, "schedule": schedule, "microbatches": microbatches, "batch": 16, **more},
    )


def _in_flight_case(schedule: str, microbatches: int) -> Case:
    """Microbatches of one size, however many: only how many are in flight can differ."""
    case = _case(schedule, microbatches, remat="full", batch=ROWS * microbatches, sequence=256)
    return Case(**{**vars(case), "hardware": HARDWARE})


def _ran(rows):
    return [row for row in rows if "train" in row]


def _published(row) -> float:
    plan = row["inspect"]["schedule"]
    k, m, v = plan["stages"], plan["microbatches"], plan["chunks"]
    return (k - 1) / k if plan["name"] == "in_order" else (k - 1) / (v * m + k - 1)


def _growth(rows, schedule: str) -> int:
    """Temporary bytes that eight more microbatches of the same size cost."""
    chosen = rows[-len(IN_FLIGHT) :]
    few, many = (r for r in chosen if r["inspect"]["schedule"]["name"] == schedule)
    return (
        many["inspect"]["memory"]["temporary_bytes"] - few["inspect"]["memory"]["temporary_bytes"]
    )


ACTIVATION_BYTES = ROWS * 256 * SIZES["width"] * 4
KEPT_BYTES = (LAYERS // STAGES + 1) * ACTIVATION_BYTES
"""A microbatch keeps its input to each layer of a stage, and GPipe its result until the loss."""


experiment = Experiment(
    cases=(*(_case(*c) for c in TIMED), *(_in_flight_case(*c) for c in IN_FLIGHT)),
    measures=("inspect",),
    trains=True,
    claims=(
        Claim(
            "every schedule has the published bubble fraction",
            lambda rows: all(
                abs(r["inspect"]["schedule"]["bubble_fraction"] - _published(r)) < 1e-9
                for r in rows
            ),
            needs=len(TIMED) + len(IN_FLIGHT),
        ),
        Claim(
            "the running program counts just as many idle ticks",
            lambda rows: (
                len(_ran(rows)) >= len(TIMED)
                and all(abs(r["train"]["last_bubble"] - _published(r)) < 1e-6 for r in _ran(rows))
            ),
            needs=len(TIMED),
        ),
        Claim(
            "every schedule trains alike",
            lambda rows: same_losses(tuple(_ran(rows)[: len(TIMED)])),
            needs=len(TIMED),
        ),
        Claim(
            "neighbours send one activation a permute, as many times as the timetable has permutes",
            lambda rows: all(
                communication_bytes(r, "collective-permute", "pipe")
                == r["inspect"]["schedule"]["permutes"] * ACTIVATION_BYTES
                for r in rows[-len(IN_FLIGHT) :]
            ),
            needs=len(IN_FLIGHT),
        ),
        Claim(
            "GPipe's memory grows by what eight more microbatches keep, to 10 %",
            lambda rows: abs(_growth(rows, "gpipe") / (8 * KEPT_BYTES) - 1) <= 0.1,
            needs=len(IN_FLIGHT),
        ),
        Claim(
            "1F1B's grows by less than a tenth of that",
            lambda rows: _growth(rows, "one_f_one_b") < 0.1 * _growth(rows, "gpipe"),
            needs=len(IN_FLIGHT),
        ),
    ),
    columns=(
        "inspect.schedule.name",
        "inspect.schedule.microbatches",
        "inspect.schedule.bubble_fraction",
        "train.last_bubble",
        "inspect.schedule.peak_in_flight",
        "inspect.memory.temporary_bytes",
        "communication.pipe",
    ),
)
