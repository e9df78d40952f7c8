"""How figures are written for a person: with their unit, metrics, meshes, places in code."""

import math
from collections.abc import Mapping
from typing import Any

_BYTES = ("B", "KB", "MB", "GB", "TB", "PB")
_FLOPS = ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP")


def bytes_text(count: float) -> str:
    """Bytes in the largest unit of which there is one, in powers of a thousand.

    >>> bytes_text(999), bytes_text(33_800), bytes_text(80e9)
    ('999 B', '33.80 KB', '80.00 GB')
    """
    return _scaled(count, _BYTES)


def flops_text(count: float) -> str:
    """Floating-point operations, in powers of a thousand.

    >>> flops_text(60), flops_text(474.4e12)
    ('60 FLOP', '474.40 TFLOP')
    """
    return _scaled(count, _FLOPS)


def seconds_text(seconds: float) -> str:
    """A time in the largest of s, ms, us and ns of which there is one.

    >>> seconds_text(75.0), seconds_text(0.0486), seconds_text(2.5e-6), seconds_text(0.0)
    ('75.00 s', '48.60 ms', '2.50 us', '0 s')
    """
    if not seconds:
        return "0 s"
    sizes = ((seconds * n, unit) for n, unit in ((1, "s"), (1e3, "ms"), (1e6, "us")))
    size, unit = next((one for one in sizes if one[0] >= 1), (seconds * 1e9, "ns"))
    return f"{size:,.2f} {unit}"


def share_text(share: float) -> str:
    """A share in percent, with a digit behind the point where it is small.

    >>> share_text(0.314), share_text(0.0012), share_text(0.00001), share_text(0.0)
    ('31%', '0.1%', '<0.1%', '0%')
    """
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def number_text(value: float) -> str:
    """A number of any size, four digits of it at least.

    >>> number_text(2.5), number_text(0.00012345), number_text(1234567.8), number_text(1e20)
    ('2.5000', '0.0001234', '1,234,568', '1e+20')
    """
    size = abs(value)
    if not math.isfinite(value) or size >= 1e15 or 0 < size < 0.1:
        return f"{value:.4g}"
    if size >= 1e6:
        return f"{value:,.0f}"
    return f"{value:.4f}" if size < 1000 else f"{value:,.1f}"


def _scaled(count: float, units: tuple[str, ...]) -> str:
    """A count in the largest of the units of which there is one; whole in the smallest."""
    size, unit = float(count), units[0]
    for name in units[1:]:
        if size < 1000:
            break
        size, unit = size / 1000, name
    return f"{size:,.0f} {unit}" if unit == units[0] else f"{size:,.2f} {unit}"


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
        is_share = name == "accuracy" and math.isfinite(value)
        parts.append(f"{name} {value:.1%}" if is_share else f"{name} {number_text(value)}")
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
    >>> entry_text("train.tokens_per_second", 123456.78), entry_text("inspect.ok", True)
    ('123,456.8', 'True')
    """
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return sizes_text(value)
    own = name.rpartition(".")[2].split("_")
    if name.startswith("communication.") or ("bytes" in own and "per_byte" not in name):
        return bytes_text(value)
    return number_text(value) if isinstance(value, float) else str(value)
