"""A decoder that nobody wrote for jaxpar: which dims are found, and is it still the same model?

Command: python -m experiments run any_model (under three minutes on two cores).
Expectation: its dims are named by tracing alone, its heads and inner widths are sharded over
`model`, and each of the three modes computes what one device computes. Under tensor parallelism,
described H100s all-reduce what the textbook says: two sums of the residual a block forward and two
backward, one for the embedding, one for the head, and a few numbers a token for the softmax. Modes
differ in who places the collectives (XLA, JAX's types, jaxpar), in islands (what JAX has no typed
rule for), and in how long the step takes to trace and compile.
"""

import numpy as np
import optax
from flax import nnx

import jaxpar
from jaxpar.case import Case
from jaxpar.experiment import Claim, Experiment, communication_bytes

LAYERS, WIDTH, HEADS, HIDDEN, VOCABULARY = 2, 64, 4, 256, 128
ROWS, LENGTH = 8, 32


class Layer(nnx.Module):
    """Attention and a feed-forward part, as Flax's own tutorials write them."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        """Change the residual `x` (rows, length, width)."""
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Decoder(nnx.Module):
    """Ids (rows, length) -> logits (rows, length, vocabulary)."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.layers = nnx.List([Layer(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, rngs=rngs)

    def __call__(self, ids):
        """Score the next id at every position."""
        x, mask = self.embed(ids), nnx.make_causal_mask(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


def loss(decoder, batch):
    """Mean cross entropy of the next id."""
    logits = decoder(batch["ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()


def decoder() -> jaxpar.Model:
    """The decoder, its loss and an example batch: all that jaxpar is told."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype("int32")
    return jaxpar.model(Decoder, loss, {"ids": ids[:, :-1], "next": ids[:, 1:]})


MODEL = "experiments.any_model:decoder"
MODES = ("auto", "explicit", "manual")
RESIDUAL = ROWS * LENGTH * WIDTH * 4
"""Bytes of the residual of the whole batch, in float32."""
TEXTBOOK = (4 * LAYERS + 2) * RESIDUAL


def _roles(row) -> dict[str, int]:
    counts: dict[str, int] = {}
    for dim in row["inspect"]["dims"]:
        counts[dim["role"]] = counts.get(dim["role"], 0) + 1
    return counts


experiment = Experiment(
    cases=(
        *(Case(MODEL, strategy="fsdp+tensor", mesh="data=4,model=2", mode=m) for m in MODES),
        *(Case(MODEL, strategy="tensor", mesh="model=4", hardware="h100", mode=m) for m in MODES),
    ),
    measures=("inspect", "verify"),
    claims=(
        Claim(
            "each layer's heads and inner dim are found, and two vocabularies",
            lambda rows: all(
                _roles(r)["heads"] == _roles(r)["inner"] == LAYERS and _roles(r)["vocabulary"] == 2
                for r in rows
            ),
            needs=6,
        ),
        Claim(
            "each mode computes what one device computes, in float64",
            lambda rows: all(
                r["verify"]["ok"] and r["verify"]["dtype"] == "float64" for r in rows[:3]
            ),
            needs=6,
        ),
        Claim(
            "asked is achieved in each mode",
            lambda rows: all(r["inspect"]["ok"] for r in rows),
            needs=6,
        ),
        Claim(
            "under tensor parallelism it all-reduces the textbook's bytes and at most 2 % besides",
            lambda rows: all(
                TEXTBOOK
                <= communication_bytes(r)
                == communication_bytes(r, "all-reduce", "model")
                <= 1.02 * TEXTBOOK
                for r in (rows[3], rows[5])
            ),
            needs=6,
        ),
        Claim(
            "explicit mode alone has islands: the lookups, which JAX does not type",
            lambda rows: (
                {i["primitive"] for i in rows[1]["inspect"]["islands"]} == {"gather", "scatter-add"}
                and not any(r["inspect"]["islands"] for r in (rows[0], rows[2]))
            ),
            needs=6,
        ),
    ),
    columns=(
        "mode",
        "strategy",
        "hardware",
        "verify.max_relative_error",
        "communication.all",
        "inspect.trace_seconds",
        "inspect.compile_seconds",
    ),
)
