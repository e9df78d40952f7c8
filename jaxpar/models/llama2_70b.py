"""Llama 2 70B (Touvron et al. 2023): 68,976,648,192 parameters."""

from jaxpar.models import transformer
from jaxpar.models.record import Model

CONFIG = transformer.Transformer(
    vocabulary=32_000,
    sequence=4096,
    width=8192,
    layers=80,
    heads=64,
    kv_heads=8,
    ffn=28_672,
    gated=True,
    activation="silu",
    norm_epsilon=1e-5,
    compute_dtype="bfloat16",
    remat="full",
    unroll=1,
)


def model(**fields) -> Model:
    """Return the decoder at this size; `fields` replace those of `Transformer`."""
    return transformer.model(CONFIG, name="llama2_70b", **fields)
