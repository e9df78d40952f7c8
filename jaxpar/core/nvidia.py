"""What this machine has of NVIDIA's: a GPU, and the library that XLA needs for fused attention."""

from importlib.util import find_spec
from pathlib import Path


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
