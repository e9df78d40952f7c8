"""Measured times of products, collectives and fused attention, as tables beside this file.

`*_products.csv` and `*_collectives.csv` are the figures that XLA's CUDA plugin carries for its own
estimates of latency (2026; kernels alone on one node; rates of products in float8, which exceed the
chip's peak there, are left out). `*_attention.csv` is cuDNN's series of FlashAttention-3 (Shah et
al. 2024, arXiv:2407.08608, figures 5 and 6; H100 SXM5, float16, 16,384 tokens, width 2,048).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxpar.core.catalogue import HARDWARE

FILE = ".json"
"""What the name of a file of one's own ends with."""

DTYPES = ("bfloat16", "float32")
"""Those of which every table of products has rates."""

LIKE = {"gb200": "b200"}
"""A device of which only some were measured -> whose tables stand for the others."""


@dataclass(frozen=True)
class Grid:
    """A rate over sizes, known at the points of a grid.

    Attributes:
        axes: the sizes along each dim, ascending.
        rates: one for each point, of the axes' lengths.
    """

    axes: tuple[tuple[float, ...], ...]
    rates: np.ndarray

    @property
    def best(self) -> float:
        """The highest rate."""
        return float(self.rates.max())

    def at(self, *sizes: float) -> float:
        """The rate at these sizes: between points linear in all logarithms, beyond them as at the
        edge; work whose time never falls along the points so never falls between them."""
        rates = np.log2(self.rates)
        for points, size in zip(self.axes, sizes, strict=True):
            logs = np.log2(points)
            where = float(np.interp(np.log2(max(size, 1)), logs, np.arange(len(points))))
            low = min(int(where), len(points) - 1)
            high = min(low + 1, len(points) - 1)
            rates = rates[low] + (where - low) * (rates[high] - rates[low])
        return float(2.0 ** np.asarray(rates).item())


@dataclass(frozen=True)
class Times:
    """Seconds of a collective by the bytes of the whole array, ascending in both."""

    bytes: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, size: float) -> float:
        """Seconds at a size: linear between points, and by the last rate beyond them."""
        if size >= self.bytes[-1]:
            return self.seconds[-1] * size / self.bytes[-1]
        return float(np.interp(size, self.bytes, self.seconds))


@lru_cache
def products(device: str) -> Mapping[str, Grid]:
    """Dtype -> FLOPs a second over (batch, m, n, k).

    No product takes longer than a larger one: where it was measured so, the larger's time stands.
    """
    found: dict[str, dict[tuple[float, ...], float]] = {}
    for row in _rows(device, "products"):
        sizes = tuple(float(row[name]) for name in ("batch", "m", "n", "k"))
        found.setdefault(row["dtype"], {})[sizes] = 1e12 * float(row["tflops_per_second"])
    return {dtype: _never_falling(_grid(points)) for dtype, points in found.items()}


@lru_cache
def attention(device: str) -> Mapping[tuple[str, bool, int], Grid]:
    """("forward" or "backward", whether causal, size of a head) -> FLOPs a second by sequence.

    Of a causal mask the half that is computed counts.
    """
    found: dict[tuple[str, bool, int], dict[tuple[float, ...], float]] = {}
    for row in _rows(device, "attention"):
        about = (row["pass"], row["causal"] == "1", int(row["head"]))
        rate = 1e12 * float(row["tflops_per_second"])
        found.setdefault(about, {})[(float(row["sequence"]),)] = rate
    return {about: _grid(points) for about, points in found.items()}


@lru_cache
def collectives(device: str) -> Mapping[tuple[str, int], Times]:
    """(kind, devices in a group; 0 for permutes) -> seconds in one node, or one NVLink domain.

    Where groups of one size ran beside as many others as fit, those are taken. A larger array never
    takes less: where the measured times fall, the longest so far stands.
    """
    found: dict[tuple[str, int], dict[float, float]] = {}
    for row in _rows(device, "collectives"):
        if row["kind"] == "collective-permute" and row["pattern"] != "ring":
            continue
        times = found.setdefault((row["kind"], int(row["group_size"] or 0)), {})
        size, seconds = float(row["bytes"]), 1e-6 * float(row["microseconds"])
        times[size] = max(seconds, times.get(size, 0.0))
    return {about: _rising(times) for about, times in found.items()}


def _rising(times: Mapping[float, float]) -> Times:
    """Times that never fall: no point is above a later one.

    Small arrays were measured with noise above; what a larger one takes bounds a smaller one.
    """
    sizes = sorted(times)
    seconds = np.minimum.accumulate([times[size] for size in sizes[::-1]])[::-1]
    return Times(tuple(sizes), tuple(float(one) for one in seconds))


def _never_falling(grid: Grid) -> Grid:
    """Rates by which work that grows with each size takes no less time at a larger size."""
    work = prod(np.meshgrid(*grid.axes, indexing="ij"))
    seconds = work / grid.rates
    for axis in range(len(grid.axes)):
        seconds = np.flip(np.minimum.accumulate(np.flip(seconds, axis), axis), axis)
    return Grid(grid.axes, work / seconds)


def _grid(points: Mapping[tuple[float, ...], float]) -> Grid:
    """The grid of points that fill one."""
    axes = tuple(tuple(sorted(set(one))) for one in zip(*points, strict=True))
    if len(points) != prod(map(len, axes)):
        raise ValueError("a table of rates must have each combination of its sizes, once")
    rates = np.empty([len(axis) for axis in axes])
    for sizes, rate in points.items():
        rates[tuple(axis.index(size) for axis, size in zip(axes, sizes, strict=True))] = rate
    return Grid(axes, rates)


def origin(device: str, what: str, kind: str = "") -> str:
    """Whose table it is: the device's own, or that of the one that it is like.

    Of collectives `kind` tells one of which it is: not every kind need have been measured.
    """
    if not device.endswith(FILE):
        return device if _table(device, what).is_file() else LIKE.get(device, device)
    record = _read(device)
    own = record["measured"].get(what) or ()
    if own and (not kind or any(row["kind"] == kind for row in own)):
        return device
    return origin(_tables_of_like(record), what, kind)


def _tables_of_like(record: Mapping[str, Any]) -> str:
    """The tables of the device that a file's record says it is like."""
    return HARDWARE.load(record["like"])().reached.tables


def _read(file: str) -> dict[str, Any]:
    """The record of a file."""
    return json.loads(Path(file).read_text(encoding="utf-8"))


def check_tables(file: str) -> None:
    """Read the tables of a file anew; KeyError, TypeError or ValueError for what is none."""
    for read in (products, attention, collectives):
        read.cache_clear()
        read(file)
    if missing := [dtype for dtype in DTYPES if dtype not in products(file)]:
        raise ValueError(f"no product of {missing[0]} among them")
    grids = [*products(file).values(), *attention(file).values()]
    numbers = [n for grid in grids for n in (*grid.rates.flat, *(x for a in grid.axes for x in a))]
    numbers += [n for t in collectives(file).values() for n in (*t.bytes, *t.seconds)]
    if not all(0 < n < inf for n in numbers):
        raise ValueError("a size, a rate or a time that is no number above 0")


def _rows(device: str, what: str) -> Iterator[Mapping[str, str]]:
    """The rows of a table of a device, or of a file of one's own; none where there is no table.

    What a file has not measured, be it a table or a kind of collective, is that of the device that
    it is like.
    """
    if device.endswith(FILE):
        record = _read(device)
        own = record["measured"].get(what) or ()
        yield from ({name: str(value) for name, value in row.items()} for row in own)
        if own and what != "collectives":
            return
        known = {row["kind"] for row in own}
        more = _rows(_tables_of_like(record), what)
        yield from (row for row in more if row.get("kind") not in known)
        return
    path = _table(origin(device, what), what)
    if path.is_file():
        yield from csv.DictReader(path.read_text().splitlines())


def _table(device: str, what: str) -> Traversable:
    """Where the table of a device of the catalogue is, if there is one."""
    return files(__name__).joinpath(f"{device}_{what}.csv")
