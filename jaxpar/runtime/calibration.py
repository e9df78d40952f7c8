"""Calibrate: how fast products, memory and collectives are on the devices at hand, as a file.

The file is hardware like another, with figures and tables of its own: `--hardware FILE.json`. Each
time is that of one program which does the same work over and over, less that of one which does it
half as often, so that neither launching nor reading back counts; the median of several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxpar.core.catalogue import HARDWARE
from jaxpar.core.errors import RequestError
from jaxpar.hardware.record import Hardware

DTYPES = ("bfloat16", "float32")
SIZES = {"gpu": (256, 1024, 4096, 8192), "cpu": (64, 256)}
"""Of each dim of a product; all combinations are measured."""
MEMORY_BYTES = {"gpu": 1 << 30, "cpu": 1 << 26}
COLLECTIVE_BYTES = {
    "gpu": tuple(1 << power for power in range(12, 31, 2)),
    "cpu": tuple(1 << power for power in range(12, 21, 4)),
}
SUSTAINED_SECONDS = {"gpu": 3.0, "cpu": 0.2}
LEAST_SECONDS = 0.02
"""A program that takes less is made to do its work more often."""

MOST_TURNS = 1 << 14

NOISY = 0.95
"""The share of the time of all turns above which that of half of them tells of other work."""


@dataclass(frozen=True)
class Timed:
    """Seconds of one piece of work: the median of repeats, and how far they are apart."""

    seconds: float
    spread: float


def calibrated(
    *, repeats: int = 5, watch: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Measure the devices of this machine; returns the record of a hardware file.

    Args:
        repeats: of each measurement.
        watch: told (what, seconds) of each.

    Raises:
        RequestError: for devices that are neither a GPU nor a CPU.
    """
    device = jax.devices()[0]
    if device.platform not in SIZES:
        raise RequestError(
            f"calibrate measures GPUs and CPUs, and this machine's device is a {device.platform}"
        )
    measure = partial(_timed, repeats=repeats)
    say = watch or (lambda what, seconds: None)
    products = list(_products(SIZES[device.platform], measure, say))
    memory = _memory(MEMORY_BYTES[device.platform], measure, say)
    collectives = list(_collectives(COLLECTIVE_BYTES[device.platform], measure, say))
    like = _like(device.device_kind)
    rates = like.rates
    assert rates is not None
    best = max(row["tflops_per_second"] for row in products if row["dtype"] == "bfloat16") * 1e12
    known = _is_like(like, device.device_kind)
    peak = rates.flops_per_second["bfloat16"] if known else best
    published = rates.memory_bytes_per_second if known else memory
    figures = {
        "flops_per_second": peak,
        "products": min(1.0, best / peak),
        "sustained": _sustained(SUSTAINED_SECONDS[device.platform], SIZES[device.platform], best),
        "memory_bytes_per_second": published,
        "memory": min(1.0, memory / published),
        "slowest": 1.0,
    }
    stamp = datetime.now(UTC).date().isoformat()
    return {
        "like": like.name,
        "name": "".join(c if c.isalnum() else "_" for c in device.device_kind.lower()).strip("_"),
        "source": f"jaxpar calibrate, {stamp}, {len(jax.devices())} x {device.device_kind}, jax "
        f"{jax.__version__}, median of {repeats}",
        "figures": figures,
        "measured": {"products": products, "collectives": collectives},
    }


def _like(kind: str) -> Hardware:
    """The described hardware that a device is, or the H100 for one that is not described."""
    for name in HARDWARE.names():
        hardware = HARDWARE.load(name)()
        if hardware.kind == "described" and _is_like(hardware, kind):
            return hardware
    return HARDWARE.load("h100")()


def _is_like(hardware: Hardware, kind: str) -> bool:
    """Whether a device of this kind is the one that is described."""
    return bool(hardware.target) and f'"{kind}"' in (hardware.target or "")


def _timed(
    make: Callable[[int], tuple[Callable[..., Any], Sequence[Any]]], *, repeats: int
) -> Timed:
    """Time work; `make` gives (a compiled function that does it so many times, its arguments)."""
    turns = 2
    while True:
        run, arguments = make(turns)
        jax.block_until_ready(run(*arguments))
        seconds = _once(run, arguments)
        if seconds >= LEAST_SECONDS or turns >= MOST_TURNS:
            break
        turns *= max(2, min(64, round(LEAST_SECONDS / max(seconds, 1e-5))))
    half, some = make(turns // 2)
    jax.block_until_ready(half(*some))
    found = sorted(
        _of_one_turn(_once(run, arguments), _once(half, some), turns) for _ in range(repeats)
    )
    return Timed(median(found), (found[-1] - found[0]) / median(found))


def _of_one_turn(whole: float, half: float, turns: int) -> float:
    """Seconds of a turn, given those of all and of half of them; calling costs the same in both.

    Where the half took as long, for the machine did other things meanwhile, a turn has its share of
    the whole, which is too long rather than nothing.

    >>> _of_one_turn(5.0, 3.0, 4), _of_one_turn(5.0, 4.9, 4)
    (1.0, 1.25)
    """
    if half > NOISY * whole:
        return whole / turns
    return (whole - half) / (turns - turns // 2)


def _once(run: Callable[..., Any], arguments: Sequence[Any]) -> float:
    """Seconds from the call until the result is there."""
    started = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - started


def _repeated(work: Callable[..., Any], turns: int) -> Callable[..., Any]:
    """A compiled function that does `work` of its arguments so many times.

    The barrier gives each turn arguments that the compiler cannot tell to be those of the last; the
    result goes along, or nobody would read it and it would be left out.
    """

    def turn(_, carried):
        arguments, _ = carried
        return lax.optimization_barrier((arguments, work(*arguments)))

    def run(*arguments):
        made = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(work, *arguments))
        return lax.fori_loop(0, turns, turn, (arguments, made))

    return jax.jit(run)


def _products(sizes, measure, say) -> Iterator[dict[str, Any]]:
    """A row for each product of the sizes."""
    for dtype in DTYPES:
        for m, n, k in product(sizes, repeat=3):
            a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
            found = measure(lambda turns, a=a, b=b: (_repeated(jnp.matmul, turns), (a, b)))
            say(f"product {m} x {n} x {k}, {dtype}", found.seconds)
            rate = 2.0 * m * n * k / found.seconds / 1e12
            yield {"dtype": dtype, "batch": 1, "m": m, "n": n, "k": k,
                   "tflops_per_second": rate, "spread": found.spread}  # fmt: skip


def _memory(size: int, measure, say) -> float:
    """Bytes a second, read and written, of an array that no cache holds."""
    x = jnp.ones((size // 4,), jnp.float32)

    def chained(turns: int) -> Callable[..., Any]:
        """Each turn works on what the last one wrote."""
        return jax.jit(lambda x: lax.fori_loop(0, turns, lambda _, x: x * 1.0001, x))

    found = measure(lambda turns: (chained(turns), (x,)))
    say("memory, read and written", found.seconds)
    return 2.0 * size / found.seconds


def _sustained(seconds: float, sizes, best: float) -> float:
    """The share of the best rate that is left when products go on for so long."""
    a = jnp.ones((sizes[-1], sizes[-1]), jnp.bfloat16)
    flops = 2.0 * sizes[-1] ** 3
    turns = max(2, round(seconds * best / flops))
    run = _repeated(jnp.matmul, turns)
    jax.block_until_ready(run(a, a))
    return min(1.0, turns * flops / _once(run, (a, a)) / best)


def _collectives(sizes, measure, say) -> Iterator[dict[str, Any]]:
    """A row for each kind and size, over all devices of this process; none where there is one."""
    devices = jax.local_devices()
    count = len(devices)
    if count == 1:
        return
    mesh = jax.make_mesh((count,), ("all",), devices=devices)
    whole, split = PartitionSpec(), PartitionSpec("all")
    ring = [(n, (n + 1) % count) for n in range(count)]
    kinds = {
        "all-reduce": (lambda x: lax.psum(x, "all"), whole, whole),
        "all-gather": (lambda x: lax.all_gather(x, "all", tiled=True), split, whole),
        "reduce-scatter": (lambda x: lax.psum_scatter(x, "all", tiled=True), whole, split),
        "all-to-all": (lambda x: lax.all_to_all(x, "all", 0, 0, tiled=True), split, split),
        "collective-permute": (lambda x: lax.ppermute(x, "all", ring), whole, split),
    }
    for kind, (work, given, made) in kinds.items():
        for size in sizes:
            length = max(1, size // 4 // count**2) * count**2
            mapped = jax.shard_map(work, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)
            x = jax.device_put(
                jnp.ones((length,), jnp.float32), jax.sharding.NamedSharding(mesh, given)
            )
            found = measure(lambda turns, w=mapped, x=x: (_repeated(w, turns), (x,)))
            say(f"{kind} of {4 * length:,} bytes", found.seconds)
            pattern, group = ("ring", "") if kind == "collective-permute" else ("", count)
            yield {"kind": kind, "pattern": pattern, "bytes": 4 * length, "groups": 1,
                   "group_size": group, "microseconds": 1e6 * found.seconds,
                   "spread": found.spread}  # fmt: skip
