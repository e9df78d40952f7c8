"""Heads are exchanged for positions and back: devices see whole sequences of a share of heads.

DeepSpeed-Ulysses (Jacobs et al. 2023). Collectives per layer, forward and as many again backward:
all-to-alls of a device's queries, of its result, and of its keys and values; these last repeated,
as little as needed, where there are fewer key-value heads than devices. Where attention is not
fused, bytes of scores grow with the square of the sequence, divided by the number of devices.
"""

from math import gcd

import jax.numpy as jnp
from jax import lax

from jaxpar.attention.fused import attend, suits
from jaxpar.attention.record import Exchange, Split
from jaxpar.core import hooks


def exchange(split: Split) -> Exchange:
    """Return the exchange of heads for positions over the sequence's axes."""
    ways, axes = split.ways, split.sequence

    def local(q, k, v, *, causal, implementation, scale):
        repeats = ways // gcd(ways, k.shape[2])
        rows, length, heads, group, head_dim = q.shape
        q = q.reshape(rows, length, heads * repeats, group // repeats, head_dim)
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
        q, k, v = (lax.all_to_all(x, axes, 2, 1, tiled=True) for x in (q, k, v))
        if suits(q, v, implementation):
            y = attend(causal, scale, q, k, v)
        else:
            y = hooks.attention(q, k, v, causal=causal, scale=scale)
        y = lax.all_to_all(y, axes, 1, 2, tiled=True)
        return y.reshape(rows, length, heads, group, head_dim)

    def faults(heads: int, group: int) -> list[str]:
        if heads * group % ways == 0:
            return []
        over = " x ".join(f"'{axis}'" for axis in axes)
        return [
            f"exchange 'ulysses' gives each of {ways} devices along mesh axis {over} an equal "
            f"share of the {heads * group} query heads, and {ways} does not divide "
            f"{heads * group}: use as many heads as it divides, a smaller axis, or exchange=ring"
        ]

    return Exchange(name="ulysses", split=split, local=local, pieces=ways, faults=faults)
