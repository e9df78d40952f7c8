"""Llama 3 70B (Grattafiori et al. 2024): 70,553,706,496 parameters."""

from jaxpar.models import transformer
from jaxpar.models.record import Model

CONFIG = transformer.Transformer(
    vocabulary=128_256,
    sequence=8192,
    width=8192,
    layers=80,
    heads=64,
    kv_heads=8,
    ffn=28_672,
    gated=True,
    activation="silu",
    rope_base=500_000.0,
    compute_dtype="bfloat16",
    remat="full",
    unroll=1,
)


def model(**fields) -> Model:
    """Return the decoder at this size; `fields` replace those of `Transformer`."""
    return transformer.model(CONFIG, name="llama3_70b", **fields)
