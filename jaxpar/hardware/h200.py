"""NVIDIA H200 SXM 141 GB, described to XLA: an H100 with more and faster memory."""

from dataclasses import replace

from jaxpar.hardware import h100
from jaxpar.hardware.record import Hardware

TARGET = replace(
    h100.TARGET,
    name="NVIDIA H200 141GB HBM3e",
    memory_bytes=151_397_597_184,
    memory_bytes_per_second=4_800_000_000_000,
)


def hardware() -> Hardware:
    """Return described H200s."""
    return replace(
        h100.hardware(),
        name="h200",
        memory_bytes=TARGET.memory_bytes,
        target=TARGET.text,
        source="XLA's own description of an H200 SXM; NVIDIA H200 datasheet",
        rates=replace(
            h100.RATES,
            memory_bytes_per_second=4.8e12,
            source="NVIDIA H200 datasheet: products and links as the H100's, memory 4.8 TB/s",
        ),
    )
