"""Fake devices on this machine's CPU, as many as the mesh needs: for numbers, not for speed."""

from jaxpar.hardware.record import Hardware


def hardware() -> Hardware:
    """Return the fake CPU devices."""
    return Hardware(name="cpu", kind="fake", source="this machine")
