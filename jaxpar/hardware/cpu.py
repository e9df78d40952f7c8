"""Simulated devices on this machine's CPU, as many as the mesh needs: for numbers, not speed."""

from jaxpar.hardware.record import Hardware


def hardware() -> Hardware:
    """Return the simulated CPU devices."""
    return Hardware(name="cpu", kind="simulated", source="this machine")
