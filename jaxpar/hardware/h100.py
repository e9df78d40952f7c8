"""NVIDIA H100 SXM 80 GB, described to XLA: as many as a mesh needs, eight a node, none present."""

from jaxpar.hardware.presets import TRAINING
from jaxpar.hardware.record import Hardware, Rates, Reached
from jaxpar.hardware.target import Target

TARGET = Target(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    multiprocessors=132,
    lanes=128,
    clock_ghz=1.98,
    memory_bytes=84_942_979_072,
    memory_bytes_per_second=3_352_320_000_000,
    cache_bytes=52_428_800,
    shared_bytes=233_472,
    block_bytes=232_448,
)

RATES = Rates(
    # Products of float32 run as TF32, which is what XLA does with them unless it is told otherwise.
    flops_per_second={
        "float64": 66.9e12,
        "float32": 494.7e12,
        "bfloat16": 989.4e12,
        "float16": 989.4e12,
        "float8_e4m3fn": 1978.9e12,
        "float8_e5m2": 1978.9e12,
        "int8": 1978.9e12,
    },
    link_bytes_per_second=450e9,
    network_bytes_per_second=50e9,
    memory_bytes_per_second=3.35e12,
    source="NVIDIA H100 Tensor Core GPU Architecture (2022), table of SXM5: tensor cores without "
    "sparsity, NVLink 900 GB/s both ways; NVIDIA DGX H100 datasheet: eight 400 Gb/s adapters",
)

REACHED = Reached(
    tables="h100",
    products=0.789,
    # A product of 16,384 cubed, which lasts long enough for the power limit of 700 W to lower the
    # clock, reaches 700.6 TFLOP/s where 4,096 cubed reaches 780.2.
    sustained=0.898,
    memory=0.85,
    # Sixteen GPUs of two nodes, 4 GiB: what eight adapters of 50 GB/s could do at most is 400 GB/s.
    network={
        "all-reduce": 0.91,
        "all-gather": 0.70,
        "reduce-scatter": 0.70,
        "all-to-all": 0.70,
        "collective-permute": 0.92,
    },
    network_seconds=14e-6,
    launch_seconds=2.5e-6,
    # Collectives take 16 of 132 multiprocessors from what runs beside them.
    crowding=132 / (132 - 16),
    # GPUs of one node differ by 5 %: the slowest is half of that behind the mean.
    slowest=1.025,
    # What NCCL, CUDA and fragments leave; a guess.
    usable=0.92,
    source="XLA's tables of products and collectives (2026); Marin's measurements of JAX on H100s "
    "(2026-07): products, memory, collectives of two nodes; NCCL's own constants of latency "
    "(src/graph/tuning.cc) (16 channels are assumed); stas00/ml-engineering (2026-08): GPUs of a "
    "node differ by 5 %",
)


def hardware() -> Hardware:
    """Return described H100s."""
    return Hardware(
        name="h100",
        kind="described",
        devices_per_node=8,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        compiler_options=TRAINING,
        source="XLA's own description of an H100 SXM; NVIDIA H100 datasheet",
        rates=RATES,
        reached=REACHED,
    )
