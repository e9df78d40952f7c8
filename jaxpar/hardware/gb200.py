"""NVIDIA GB200 NVL72, described to XLA: 72 GPUs in one NVLink domain."""

from dataclasses import replace

from jaxpar.hardware import b200
from jaxpar.hardware.record import Hardware

TARGET = replace(
    b200.TARGET,
    name="NVIDIA GB200",
    multiprocessors=152,
    clock_ghz=2.062,
    memory_bytes=197_897_748_480,
    memory_bytes_per_second=7_928_064_000_000,
    cache_bytes=135_528_448,
)


def hardware() -> Hardware:
    """Return described GB200s; a node is the whole domain of 72."""
    peaks = b200.RATES.flops_per_second
    return replace(
        b200.hardware(),
        name="gb200",
        devices_per_node=72,
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        source="XLA's own description of a GB200; NVIDIA GB200 NVL72 datasheet",
        rates=replace(
            b200.RATES,
            flops_per_second={dtype: peak * 2500 / 2250 for dtype, peak in peaks.items()},
            source="NVIDIA GB200 NVL72 datasheet: tensor cores without sparsity, NVLink 1.8 TB/s "
            "both ways in a domain of 72; one adapter of 400 Gb/s a GPU",
        ),
        # 1,822 of 2,500 TFLOP/s at the best shape.
        reached=replace(
            b200.REACHED,
            tables="gb200",
            products=0.73,
            source="XLA's tables of collectives in a domain (2026); products by the B200's table; "
            f"otherwise {b200.REACHED.source}",
        ),
    )
