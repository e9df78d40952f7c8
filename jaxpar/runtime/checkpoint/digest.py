"""A digest of an array's numbers that does not depend on how it is sharded, nor on who computes it.

Every element's bits are mixed with its position and summed as 32-bit integers, twice. Sums may be
taken in any order, so devices and processes each digest their own shards. Mixing is one to one
for each position, so that a change of one element always shows, and others with a chance of 2**-64
not to. It finds damage; it does not keep out somebody who forges a checkpoint.

The mixing is the finalizer of MurmurHash3 (Austin Appleby, public domain).
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SEEDS = (0x243F6A88, 0x85A308D3)
"""Of the two sums: binary digits of pi."""

_STRIDE = 0x9E3779B9
"""What tells one position from the next: 2**32 over the golden ratio, which is odd."""


def digests(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Name -> the digest of an array, sixteen hexadecimal digits.

    Args:
        arrays: jax.Array, sharded or not, over processes too; or numpy's, which need no device.

    >>> digests({"numpy": np.arange(3.0, dtype=np.float32)})
    {'numpy': '6ce028b30536b2fd'}
    """
    # Each is waited for: of programs that do not depend on each other, processes on CPUs would
    # meet in the sums over devices in different orders.
    found = {
        name: np.asarray(_sums_on_devices(x))
        if isinstance(x, jax.Array)
        else _sums(np, _words_here(x))
        for name, x in arrays.items()
    }
    return {name: "".join(f"{int(s):08x}" for s in two) for name, two in found.items()}


@jax.jit
def _sums_on_devices(x: jax.Array) -> jax.Array:
    """The two sums of a jax.Array."""
    return _sums(jnp, _words(x))


def _sums(library: Any, words: Any) -> Any:
    """The two sums over 32-bit words, given in the order of the elements; numpy's or JAX's."""
    number = np.uint32
    index = _positions(library, words.shape) * number(_STRIDE)
    both = [
        library.sum(_mixed(words ^ (index + number(seed)), number), dtype=number) for seed in _SEEDS
    ]
    return library.stack(both)


def _mixed(h: Any, number: Any) -> Any:
    """Each word mixed, one to one."""
    h = (h ^ (h >> number(16))) * number(0x85EBCA6B)
    h = (h ^ (h >> number(13))) * number(0xC2B2AE35)
    return h ^ (h >> number(16))


def _positions(library: Any, shape: tuple[int, ...]) -> Any:
    """Of every element its number in row-major order, modulo 2**32."""
    if library is np:
        return np.arange(prod(shape), dtype=np.uint64).astype(np.uint32).reshape(shape)
    index = jnp.zeros(shape, jnp.uint32)
    for dim in range(len(shape)):
        stride = np.uint32(prod(shape[dim + 1 :]) % 2**32)
        index += lax.broadcasted_iota(jnp.uint32, shape, dim) * stride
    return index


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as one or, in a last dim, several 32-bit words."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _words(jnp.stack([x.real, x.imag], -1))
    if (bits := _few_bits(x.dtype)) is not None:
        return x.astype(jnp.int8).astype(jnp.uint32) & jnp.uint32(2**bits - 1)
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, kind).astype(jnp.uint32)


def _words_here(x: Any) -> np.ndarray:
    """The same of a numpy array."""
    x = np.atleast_1d(x)  # numpy warns of a scalar's overflow, not of an array's
    if np.issubdtype(x.dtype, np.complexfloating):
        return _words_here(np.stack([x.real, x.imag], -1))
    if (bits := _few_bits(x.dtype)) is not None:
        return x.astype(np.int8).view(np.uint8).astype(np.uint32) & np.uint32(2**bits - 1)
    kind = {1: np.uint8, 2: np.uint16}.get(x.dtype.itemsize, np.uint32)
    words = np.ascontiguousarray(x).reshape(*x.shape, 1).view(kind)
    return (words if x.dtype.itemsize > 4 else words[..., 0]).astype(np.uint32)


def _few_bits(dtype: Any) -> int | None:
    """The bits of an element that has less than a byte; None for others."""
    if np.dtype(dtype).kind == "b":
        return 1
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8
    return bits if bits < 8 else None
