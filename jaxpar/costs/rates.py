"""Seconds of products, fused attention and memory traffic on a device, from measured tables."""

from __future__ import annotations

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.hardware import measured
from jaxpar.hardware.record import Hardware, Rates, Reached
from jaxpar.hlo.products import FusedAttention, Product

DTYPES = {
    "bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64", "s8": "int8",
    "f8e4m3fn": "float8_e4m3fn", "f8e5m2": "float8_e5m2",
}  # fmt: skip
"""XLA's spelling of dtypes, and ours."""

TILE = 128
"""Rows and columns of the tiles in which products are made: a dim below it leaves lanes empty."""

HALF = ("bfloat16", "float16")
"""Dtypes that share a table: of two bytes, accumulated in float32."""

ATTENTION = "h100"
"""The device whose table of fused attention stands for others without one."""


class Device:
    """The speed of one device, as its published rates and measured tables tell it."""

    def __init__(self, hardware: Hardware):
        """Refuse hardware whose speed is not known."""
        if hardware.rates is None or hardware.reached is None:
            raise RequestError(
                f"the speed of hardware '{hardware.name}' is not known: predict for described "
                "hardware, such as h100"
            )
        self.hardware = hardware
        self.rates: Rates = hardware.rates
        self.reached: Reached = hardware.reached
        self._slower: dict[str, float] = {}
        self._products = measured.products(self.reached.tables)
        own = measured.attention(self.reached.tables)
        self._attention = own or measured.attention(ATTENTION)
        self._best_of_attention = measured.products(self.reached.tables if own else ATTENTION)[
            "bfloat16"
        ].best

    def slower_links(self, kind: str) -> float:
        """How much longer a byte of a kind of collective takes over this device's links than over
        those of the tables."""
        if kind not in self._slower:
            measured_on = measured.origin(self.reached.tables, "collectives", kind)
            rates = self.rates
            if not measured_on.endswith(measured.FILE):
                rates = HARDWARE.load(measured_on)().rates
            self._slower[kind] = rates.link_bytes_per_second / self.rates.link_bytes_per_second
        return self._slower[kind]

    def peak(self, dtype: str) -> float:
        """FLOPs a second at most, of a product of operands as XLA spells their dtype."""
        rates = self.rates.flops_per_second
        return rates.get(DTYPES.get(dtype, "bfloat16"), max(rates[half] for half in HALF))

    @property
    def memory_bytes_per_second(self) -> float:
        """Read and written by a kernel that does nothing else."""
        return self.reached.memory * self.rates.memory_bytes_per_second / self.reached.slowest

    def memory_seconds(self, size: float) -> float:
        """Of a kernel that touches so many bytes."""
        return self.reached.launch_seconds + size / self.memory_bytes_per_second

    def product_seconds(self, one: Product) -> float:
        """Of a product of matrices, in a step that lasts."""
        if not one.flops:
            return self.memory_seconds(one.bytes)
        known = "float32" if one.dtype in ("f32", "f64") else "bfloat16"
        grid = self._products[known]
        share = self.reached.products * grid.at(one.batch, one.m, one.n, one.k) / grid.best
        # Tables begin at 256: tiles that are not full do as much as full ones.
        filled = min(1.0, one.m / TILE) * min(1.0, one.n / TILE)
        rate = share * filled * self.reached.sustained * self.peak(one.dtype)
        seconds = one.flops / rate * self.reached.slowest
        return self.reached.launch_seconds + max(seconds, one.bytes / self.memory_bytes_per_second)

    def attention_seconds(self, one: FusedAttention) -> float:
        """Of a call of fused attention."""
        seconds = one.flops / self._attention_rate(one) * self.reached.slowest
        return self.reached.launch_seconds + max(seconds, one.bytes / self.memory_bytes_per_second)

    def _attention_rate(self, one: FusedAttention) -> float:
        """FLOPs a second of fused attention, by the nearest size of a head that was measured."""
        way = "backward" if one.backward else "forward"
        rate = self._measured_attention(way, one.causal, one)
        if one.backward and one.causal:
            # Not measured: a mask costs backward the share of its rate that it costs forward.
            plain = self._measured_attention("forward", False, one)
            rate *= self._measured_attention("forward", True, one) / plain
        # As a share of the best product, on the device that was measured and on this one.
        return rate * self.reached.products * self.peak(one.dtype) / self._best_of_attention

    def _measured_attention(self, way: str, causal: bool, one: FusedAttention) -> float:
        """The table's rate for one way and mask."""
        heads = [head for w, c, head in self._attention if (w, c) == (way, causal)]
        if not heads:  # backward with a mask
            return self._measured_attention(way, False, one)
        head = min(heads, key=lambda size: abs(size - one.head))
        return self._attention[way, causal, head].at(one.queries)
