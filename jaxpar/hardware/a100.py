"""NVIDIA A100 SXM 80 GB, described to XLA: eight a node, 200 Gb/s an adapter, one each."""

from dataclasses import replace

from jaxpar.hardware import h100
from jaxpar.hardware.presets import TRAINING
from jaxpar.hardware.record import Hardware, Rates
from jaxpar.hardware.target import Target

TARGET = Target(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    multiprocessors=108,
    lanes=64,
    clock_ghz=1.41,
    memory_bytes=85_100_068_864,
    memory_bytes_per_second=2_039_040_000_000,
    cache_bytes=41_943_040,
    shared_bytes=167_936,
    block_bytes=166_912,
)

RATES = Rates(
    flops_per_second={
        "float64": 19.5e12,
        "float32": 156e12,
        "bfloat16": 312e12,
        "float16": 312e12,
        "int8": 624e12,
    },
    link_bytes_per_second=300e9,
    network_bytes_per_second=25e9,
    memory_bytes_per_second=2.039e12,
    source="NVIDIA A100 datasheet (2021): tensor cores without sparsity, NVLink 600 GB/s both "
    "ways; DGX A100: eight adapters of 200 Gb/s",
)

REACHED = replace(
    h100.REACHED,
    # 271.2 of 312 TFLOP/s at the best shape. That its clock holds in steps that last is a guess.
    products=0.87,
    sustained=0.97,
    crowding=108 / (108 - 12),
    source="stas00/ml-engineering (2026-08): products; shares of the H100's tables; "
    "the sustained clock is a guess",
    guessed=0.08,
)


def hardware() -> Hardware:
    """Return described A100s of 80 GB."""
    return Hardware(
        name="a100",
        kind="described",
        devices_per_node=8,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        compiler_options=TRAINING,
        source="XLA's own description of an A100 SXM; NVIDIA A100 datasheet",
        rates=RATES,
        reached=REACHED,
    )
