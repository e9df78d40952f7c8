"""What this machine has of NVIDIA's: a GPU, and the library that XLA needs for fused attention."""

from importlib.util import find_spec
from pathlib import Path

import jax

AMPERE, HOPPER = (8, 0), (9, 0)
"""Compute capabilities from which cuDNN fuses attention: of heads up to 128 elements, and 256."""


def has_nvidia_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, found as JAX does and without starting it."""
    return any(Path("/dev", name).exists() for name in ("nvidia0", "nvidiactl", "dxg"))


def has_cudnn() -> bool:
    """Whether cuDNN is here for XLA to compile with: from its wheel, or beside a GPU."""
    try:
        wheel = find_spec("nvidia.cudnn")
    except ModuleNotFoundError:  # not even its parent is there
        wheel = None
    # Where there is a GPU, JAX uses it only with cuDNN, wherever that was installed from.
    return wheel is not None or has_nvidia_gpu()


def fuses(head_dim: int) -> bool:
    """Whether attention with heads of so many elements is cuDNN's where XLA compiles for CUDA.

    By this machine's GPUs where JAX has any, whose oldest decides; else for described ones, which
    are Hopper's.
    """
    if not has_cudnn():
        return False
    try:
        here = jax.devices("cuda") if has_nvidia_gpu() else []
    except RuntimeError:  # JAX was told not to look for them
        here = []
    found = [tuple(map(int, d.compute_capability.split("."))) for d in here]
    return min(found, default=HOPPER) >= (HOPPER if head_dim > 128 else AMPERE)
