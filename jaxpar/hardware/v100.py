"""NVIDIA V100 SXM2 16 GB, described to XLA: eight a node; products in float16, not bfloat16."""

from dataclasses import replace

from jaxpar.hardware import a100
from jaxpar.hardware.presets import TRAINING
from jaxpar.hardware.record import Hardware, Rates
from jaxpar.hardware.target import Target

TARGET = Target(
    name="Tesla V100-SXM2-16GB",
    capability=(7, 0),
    multiprocessors=80,
    lanes=64,
    clock_ghz=1.53,
    memory_bytes=16_935_682_048,
    memory_bytes_per_second=898_048_000_000,
    cache_bytes=6_291_456,
    shared_bytes=98_304,
    block_bytes=98_304,
)

RATES = Rates(
    # bfloat16 has no tensor cores here: its products run as float32.
    flops_per_second={
        "float64": 7.8e12,
        "float32": 15.7e12,
        "bfloat16": 15.7e12,
        "float16": 125e12,
    },
    link_bytes_per_second=150e9,
    network_bytes_per_second=3.125e9,
    memory_bytes_per_second=0.9e12,
    source="NVIDIA V100 datasheet: NVLink 300 GB/s both ways; EC2 p3dn: 100 Gb/s a node of four "
    "or eight, taken for eight adapters of an eighth",
)

REACHED = replace(
    a100.REACHED,
    products=0.75,
    sustained=0.95,
    crowding=80 / (80 - 8),
    source="shares of the H100's tables; best product and clock under load are guesses",
    guessed=0.15,
)


def hardware() -> Hardware:
    """Return described V100s of 16 GB."""
    return Hardware(
        name="v100",
        kind="described",
        devices_per_node=8,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        compiler_options=TRAINING,
        source="XLA's own description of a V100 SXM2; NVIDIA V100 datasheet",
        rates=RATES,
        reached=REACHED,
    )
