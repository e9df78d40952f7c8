"""NVIDIA L4 24 GB, described to XLA: eight a machine, joined by PCIe alone."""

from dataclasses import replace

from jaxpar.hardware import a100
from jaxpar.hardware.presets import TRAINING
from jaxpar.hardware.record import Hardware, Rates
from jaxpar.hardware.target import Target

TARGET = Target(
    name="NVIDIA L4",
    capability=(8, 9),
    multiprocessors=58,
    lanes=128,
    clock_ghz=2.04,
    memory_bytes=23_609_475_072,
    memory_bytes_per_second=300_096_000_000,
    cache_bytes=50_331_648,
    shared_bytes=102_400,
    block_bytes=101_376,
    threads=1536,
)

RATES = Rates(
    flops_per_second={
        "float64": 0.47e12,
        "float32": 60e12,
        "bfloat16": 121e12,
        "float16": 121e12,
        "float8_e4m3fn": 242e12,
        "float8_e5m2": 242e12,
        "int8": 242e12,
    },
    link_bytes_per_second=31.5e9,
    network_bytes_per_second=1.5625e9,
    memory_bytes_per_second=0.3e12,
    source="NVIDIA L4 datasheet: tensor cores without sparsity, PCIe 4.0 x16; Google Cloud G2: "
    "100 Gb/s a machine of eight",
)

REACHED = replace(
    a100.REACHED,
    # 72 W: the clock falls in long products. Neither share was measured; both are guesses.
    products=0.70,
    sustained=0.80,
    crowding=1.1,
    source="shares of the H100's tables; the sustained clock is a guess from its limit of 72 W",
    guessed=0.25,
)


def hardware() -> Hardware:
    """Return described L4s."""
    return Hardware(
        name="l4",
        kind="described",
        devices_per_node=8,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        compiler_options=TRAINING,
        source="NVIDIA L4 datasheet and Ada architecture paper",
        rates=RATES,
        reached=REACHED,
    )
