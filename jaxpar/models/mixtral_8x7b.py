"""Mixtral 8x7B (Jiang et al. 2024): 46,702,792,704 parameters.

Routed here with places for 1.25 times the even share; the original drops nobody (capacity=0).
"""

from jaxpar.models import moe
from jaxpar.models.record import Model

CONFIG = moe.MoE(
    vocabulary=32_000,
    sequence=4096,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    ffn=14_336,
    gated=True,
    activation="silu",
    rope_base=1_000_000.0,
    experts=8,
    active=2,
    capacity=1.25,
    balance=0.02,
    compute_dtype="bfloat16",
    remat="full",
    unroll=1,
)


def model(**fields) -> Model:
    """Return the mixture at this size; `fields` replace those of `MoE`."""
    return moe.model(CONFIG, name="mixtral_8x7b", **fields)
