"""NVIDIA B200 SXM 180 GB, described to XLA: eight a node, 400 Gb/s an adapter, one each."""

from dataclasses import replace

from jaxpar.hardware import h100
from jaxpar.hardware.presets import TRAINING
from jaxpar.hardware.record import Hardware, Rates
from jaxpar.hardware.target import Target

TARGET = Target(
    name="NVIDIA B200",
    capability=(10, 0),
    multiprocessors=148,
    lanes=128,
    clock_ghz=1.965,
    memory_bytes=191_514_411_008,
    memory_bytes_per_second=7_672_320_000_000,
    cache_bytes=132_644_864,
    shared_bytes=233_472,
    block_bytes=232_448,
)

RATES = Rates(
    flops_per_second={
        "float64": 40e12,
        "float32": 1125e12,
        "bfloat16": 2250e12,
        "float16": 2250e12,
        "float8_e4m3fn": 4500e12,
        "float8_e5m2": 4500e12,
        "int8": 4500e12,
    },
    link_bytes_per_second=900e9,
    network_bytes_per_second=50e9,
    memory_bytes_per_second=8e12,
    source="NVIDIA HGX B200 datasheet: tensor cores without sparsity, NVLink 1.8 TB/s both ways; "
    "eight adapters of 400 Gb/s",
)

REACHED = replace(
    h100.REACHED,
    tables="b200",
    # 1,881 of 2,250 TFLOP/s at 16,384 cubed, which is as long a product as a step has.
    products=0.836,
    sustained=1.0,
    memory=0.80,
    crowding=148 / (148 - 16),
    source="XLA's tables of products and collectives (2026); Marin's measurements of JAX on B200s "
    "(2026-07); attention as share of the peak as on the H100, which is a guess",
)


def hardware() -> Hardware:
    """Return described B200s."""
    return Hardware(
        name="b200",
        kind="described",
        devices_per_node=8,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        compiler_options=TRAINING,
        source="XLA's own description of a B200; NVIDIA B200 datasheet",
        rates=RATES,
        reached=REACHED,
    )
