"""How figures are written for a person: bytes with their unit, metrics, meshes, places in code."""

from collections.abc import Mapping
from typing import Any

_UNITS = ("B", "KB", "MB", "GB", "TB")


def bytes_text(count: float) -> str:
    """Bytes in the largest unit of which there is one, in powers of a thousand.

    >>> bytes_text(999), bytes_text(33_800), bytes_text(80e9)
    ('999 B', '33.80 KB', '80.00 GB')
    """
    size, units = float(count), iter(_UNITS)
    unit = next(units)
    for larger in units:
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.2f} {unit}"


def sizes_text(sizes: Mapping[str, int]) -> str:
    """Sizes by name as they are typed.

    >>> sizes_text({"data": 4, "model": 2})
    'data=4,model=2'
    """
    return ",".join(f"{name}={size}" for name, size in sizes.items())


def metrics_text(head: str, metrics: Mapping[str, float]) -> str:
    """Metrics in one line; an accuracy is a share.

    >>> metrics_text("test", {"test_loss": 0.25, "test_accuracy": 0.975})
    'test: loss 0.2500, accuracy 97.5%'
    """
    parts = []
    for name, value in metrics.items():
        name = name.removeprefix("test_").replace("_", " ")
        parts.append(f"{name} {value:.1%}" if name == "accuracy" else f"{name} {value:.4f}")
    return f"{head}: {', '.join(parts)}"


def place_text(source: str) -> str:
    """Where in the code something comes from, without the folders; a weight by its path.

    >>> place_text("/home/me/net.py:12 make.<locals>.loss"), place_text("weight up/kernel")
    ('net.py:12 make.loss', 'weight up/kernel')
    """
    if source.startswith("weight "):
        return source
    place, _, function = source.partition(" ")
    return f"{place.rpartition('/')[2]} {function.replace('.<locals>', '')}".strip()


def entry_text(name: str, value: Any) -> str:
    """An entry of a record: `name` says whether it counts bytes, with its dots or without.

    >>> entry_text("memory.total_bytes", 2048), entry_text("train.last_loss", 0.123456)
    ('2.05 KB', '0.1235')
    """
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return sizes_text(value)
    own = name.rpartition(".")[2].split("_")
    if name.startswith("communication.") or ("bytes" in own and "per_byte" not in name):
        return bytes_text(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
