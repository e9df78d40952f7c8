"""What backward computes again rather than keep: what costs less to make than to hold."""

from __future__ import annotations

from typing import Any

from jaxpar.core.hooks import ARRIVED
from jaxpar.jaxprs.rules import rule_named


def keep_all_but_cheap(primitive: Any, *_, **params: Any) -> bool:
    """Whether a result is kept for backward: all are but casts, views, constraints and gathers.

    A weight that was gathered, cast or reshaped for use is made again: keeping it would hold every
    layer's whole weights at once, which is what sharding them was to avoid. What arrived from other
    devices as an activation is kept: it is not cheap to move again.
    """
    return not rule_named(primitive.name).is_cheap or params.get("name") == ARRIVED
