"""GPT-2 small (Radford et al. 2019): 124,439,808 parameters."""

from jaxpar.models import transformer
from jaxpar.models.record import Model

CONFIG = transformer.Transformer(
    vocabulary=50_257,
    sequence=1024,
    width=768,
    layers=12,
    heads=12,
    kv_heads=12,
    ffn=3072,
    activation="gelu",
    positions="learned",
    norm="layer",
    bias=True,
    tied=True,
    unroll=1,
)


def model(**fields) -> Model:
    """Return the decoder at this size; `fields` replace those of `Transformer`."""
    return transformer.model(CONFIG, name="gpt2", **fields)
