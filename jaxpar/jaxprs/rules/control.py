"""Primitives that hold jaxprs, that map over devices, or that only say something.

What they hold is walked by whoever evaluates or relates it; here stands what they are.
"""

from __future__ import annotations

from jaxpar.core.annotations import ATTEND, LAYERS, NAMED, ORDERED
from jaxpar.jaxprs.rules.elementwise import same_shape
from jaxpar.jaxprs.rules.record import Rule


def _attend(counter, ins, outs, params):
    """Attention (batch, positions, heads, group, width): positions and widths are needed whole."""
    q = counter.dims(ins[0])
    batch, length, heads, _, width = q
    counter.whole.update((*length, *width))
    k, v = ([batch, (counter.factor(s[1], whole=True),), heads, width] for s in ins[1:])
    v[3] = (counter.factor(ins[2][3], whole=True),)
    return [q, k, v], [[*q[:4], v[3]]]


_COLLECTIVES = {
    "ppermute": "collective-permute",
    "all_to_all": "all-to-all",
    "all_gather": "all-gather",
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "reduce_scatter": "reduce-scatter",
}

RULES = {
    **dict.fromkeys(("jit", "closed_call", "call"), Rule("call")),
    "remat2": Rule("remat"),
    **dict.fromkeys(
        "custom_jvp_call custom_vjp_call custom_vmap_call linear_call composite".split(),
        Rule("custom"),
    ),
    "custom_linear_solve": Rule("solve"),
    "custom_lin": Rule("custom", looks_at_bits=True),
    "scan": Rule("scan"),
    "while": Rule("while"),
    "cond": Rule("cond"),
    "shard_map": Rule("shards", looks_at_bits=True),
    LAYERS: Rule("layers"),
    ATTEND: Rule("other", _attend),
    NAMED: Rule(
        "annotation",
        same_shape,
        is_cheap=True,
        ids="kept",
        keeps_stored=True,
        is_piecewise=True,
    ),
    ORDERED: Rule("annotation", same_shape, ids="kept"),
    "name": Rule("annotation", same_shape, is_cheap=True, ids="kept", is_piecewise=True),
    **{
        name: Rule("collective", traffic=kind, is_cheap=name == "all_gather")
        for name, kind in _COLLECTIVES.items()
    },
    "pvary": Rule("annotation", is_cheap=True),
    "axis_index": Rule("other"),
    "pure_callback": Rule("other", looks_at_bits=True),
    "io_callback": Rule("other", looks_at_bits=True),
    **dict.fromkeys(
        (
            "debug_callback",
            "debug_print",
            "inspect_sharding",
            "create_token",
            "empty",
            "empty2",
            "platform_index",
        ),
        Rule("other"),
    ),
    **dict.fromkeys(
        "random_bits random_seed random_wrap random_unwrap random_fold_in random_split "
        "random_clone random_gamma threefry2x32 threefry4x32 philox2x32 philox4x32 "
        "rng_bit_generator rng_uniform".split(),
        Rule("random"),
    ),
}
"""Of those without `relate`, what they make has no dim in common with what they read."""
