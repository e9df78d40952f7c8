"""Llama 2 7B (Touvron et al. 2023): 6,738,415,616 parameters."""

from jaxpar.models import transformer
from jaxpar.models.record import Model

CONFIG = transformer.Transformer(
    vocabulary=32_000,
    sequence=4096,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=32,
    ffn=11_008,
    gated=True,
    activation="silu",
    norm_epsilon=1e-5,
    compute_dtype="bfloat16",
    remat="full",
    unroll=1,
)


def model(**fields) -> Model:
    """Return the decoder at this size; `fields` replace those of `Transformer`."""
    return transformer.model(CONFIG, name="llama2_7b", **fields)
