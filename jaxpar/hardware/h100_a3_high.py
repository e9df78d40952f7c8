"""H100s as Google's A3 High has them: four adapters of 200 Gb/s a node of eight."""

from dataclasses import replace

from jaxpar.hardware import h100
from jaxpar.hardware.record import Hardware


def hardware() -> Hardware:
    """Return described H100s on a network of a quarter of the usual rate."""
    return replace(
        h100.hardware(),
        name="h100_a3_high",
        source="XLA's own description of an H100 SXM; Google Cloud, A3 High: 4 x 200 Gb/s a node",
        rates=replace(h100.RATES, network_bytes_per_second=12.5e9),
    )
