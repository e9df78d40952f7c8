"""Published sizes of the decoder and of its mixture of experts, one row each.

A row is an entry of the catalogue, as a file is: its key is the name, and the first line of its
call is what a list shows.
"""

from collections.abc import Callable

from jaxpar.models import moe, transformer
from jaxpar.models.record import Model


def _decoder(summary: str, **sizes) -> Callable[..., Model]:
    """The factory `(name, **fields) -> Model` of a decoder; `fields` replace those of its sizes."""
    return _sized(transformer.model, transformer.Transformer(**sizes), summary)


def _mixture(summary: str, **sizes) -> Callable[..., Model]:
    """As `_decoder`, of a mixture of experts."""
    return _sized(moe.model, moe.MoE(**sizes), summary)


def _sized(model: Callable[..., Model], config: object, summary: str) -> Callable[..., Model]:
    """The factory `(name, **fields) -> Model` of `model` at the sizes of `config`."""

    def factory(name: str, **fields) -> Model:
        return model(config, name=name, **fields)

    factory.__doc__ = summary
    return factory


AT_SCALE = {"compute_dtype": "bfloat16", "remat": "full", "unroll": 1}
"""How models that do not fit one device are trained here."""

LLAMA = {"gated": True, "activation": "silu", **AT_SCALE}
LLAMA_2 = {"vocabulary": 32_000, "sequence": 4096, **LLAMA}
LLAMA_3 = {"vocabulary": 128_256, "sequence": 8192, "rope_base": 500_000.0, **LLAMA}

models = {
    "gpt2": _decoder(
        "GPT-2 small (Radford et al. 2019): 124,439,808 parameters.",
        vocabulary=50_257,
        sequence=1024,
        width=768,
        layers=12,
        heads=12,
        kv_heads=12,
        ffn=3072,
        positions="learned",
        norm="layer",
        bias=True,
        tied=True,
        unroll=1,
    ),
    "llama2_7b": _decoder(
        "Llama 2 7B (Touvron et al. 2023): 6,738,415,616 parameters.",
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        ffn=11_008,
        **LLAMA_2,
    ),
    "llama2_70b": _decoder(
        "Llama 2 70B (Touvron et al. 2023): 68,976,648,192 parameters.",
        width=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        ffn=28_672,
        **LLAMA_2,
    ),
    "llama3_8b": _decoder(
        "Llama 3 8B (Grattafiori et al. 2024): 8,030,261,248 parameters.",
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        ffn=14_336,
        **LLAMA_3,
    ),
    "llama3_70b": _decoder(
        "Llama 3 70B (Grattafiori et al. 2024): 70,553,706,496 parameters.",
        width=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        ffn=28_672,
        **LLAMA_3,
    ),
    # Routed here with places for 1.25 times the even share; the original drops nobody (capacity=0).
    "mixtral_8x7b": _mixture(
        "Mixtral 8x7B (Jiang et al. 2024): 46,702,792,704 parameters.",
        vocabulary=32_000,
        sequence=4096,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        ffn=14_336,
        rope_base=1_000_000.0,
        experts=8,
        active=2,
        capacity=1.25,
        balance=0.02,
        **LLAMA,
    ),
}
