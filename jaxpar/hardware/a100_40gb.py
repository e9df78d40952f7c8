"""NVIDIA A100 SXM 40 GB, described to XLA: half the memory of the larger one, and slower."""

from dataclasses import replace

from jaxpar.hardware import a100
from jaxpar.hardware.record import Hardware

TARGET = replace(
    a100.TARGET,
    name="NVIDIA A100-SXM4-40GB",
    memory_bytes=42_331_013_120,
    memory_bytes_per_second=1_555_200_000_000,
)


def hardware() -> Hardware:
    """Return described A100s of 40 GB."""
    return replace(
        a100.hardware(),
        name="a100_40gb",
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        rates=replace(a100.RATES, memory_bytes_per_second=1.555e12),
    )
