"""Llama 3 8B (Grattafiori et al. 2024): 8,030,261,248 parameters."""

from jaxpar.models import transformer
from jaxpar.models.record import Model

CONFIG = transformer.Transformer(
    vocabulary=128_256,
    sequence=8192,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    ffn=14_336,
    gated=True,
    activation="silu",
    rope_base=500_000.0,
    compute_dtype="bfloat16",
    remat="full",
    unroll=1,
)


def model(**fields) -> Model:
    """Return the decoder at this size; `fields` replace those of `Transformer`."""
    return transformer.model(CONFIG, name="llama3_8b", **fields)
