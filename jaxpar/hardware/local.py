"""The accelerators in this machine, through the JAX that is installed here."""

from jaxpar.hardware.record import Hardware


def hardware() -> Hardware:
    """Return this machine's own accelerators."""
    return Hardware(name="local", kind="local", source="this machine")
