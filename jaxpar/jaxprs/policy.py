"""What backward computes again rather than keep: what costs less to make than to hold."""

from __future__ import annotations

from typing import Any

from jaxpar.core.hooks import ARRIVED
from jaxpar.jaxprs.rules import rule_named

COMPARISONS = frozenset("eq ge gt le lt ne".split())


def keep_all_but_cheap(primitive: Any, *_, **params: Any) -> bool:
    """Whether a result is kept for backward: all are but arithmetic on elements, casts, views,
    constraints and gathers.

    Elements are computed again from what was kept of products and sums, in the kernel that needs
    them, which is sooner than to read them (kept they are most of the memory: Llama 3 8B in 8
    stages 91 GB, and 44 without); but for comparisons, which are a byte, and of which a mask would
    need random bits of four. A weight that was gathered, cast or reshaped for use is made again:
    keeping it would hold every layer's whole weights at once, which is what sharding them was to
    avoid. What arrived from other devices as an activation is kept: it is not cheap to move again.
    """
    rule = rule_named(primitive.name)
    is_again = rule.kind == "elementwise" and primitive.name not in COMPARISONS
    return not (rule.is_cheap or is_again) or params.get("name") == ARRIVED
