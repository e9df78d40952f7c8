"""What a layout holds on a device, by formulas: its state for certain, and the rest roughly."""

from __future__ import annotations

from jaxpar.core.mesh import shards
from jaxpar.models.record import role_of
from jaxpar.search.sizes import NARROW, Sizes, layers_of, weights_of

LOGITS = 10.0
"""Bytes of a token's scores, each: in two types, and their gradient."""


def state_bytes(sizes: Sizes) -> float:
    """Bytes of parameters and optimizer state on a device, and of gradients that add up."""
    parameters = sum(a.device_bytes(sizes.mesh) for a in sizes.layout.parameters.values())
    state = sum(
        a.whole_bytes / shards(a.optimizer_state, sizes.mesh) * sizes.known.optimizer_arrays
        for a in sizes.layout.parameters.values()
    )
    return parameters + state


def live_bytes(sizes: Sizes) -> float:
    """Bytes of gradients, of what forward keeps, and of scores, roughly."""
    gradients = sum(
        a.whole_bytes / shards(a.gradient, sizes.mesh) for a in sizes.layout.parameters.values()
    )
    layers = sizes.layers
    kept = {"full": 1.0, "minimal": 0.0, "none": 3.0}.get(sizes.remat, 0.0) * sizes.known.width
    if sizes.remat != "full":
        kept += sizes.known.width
        for a in weights_of(sizes.layout):
            if layers_of(sizes.layout, a) > 1:
                each = a.size / shards(a.used, sizes.mesh) * sizes.stages / layers
                kept += sizes.ways * each / sizes.known.width
    flying = min(sizes.stages, sizes.parts)
    split = sizes.ways if sizes.splits_residual or sizes.remat != "full" else 1
    saved = NARROW * sizes.tokens * kept * layers / sizes.stages * flying / split
    words = [
        a.size / shards(a.used, sizes.mesh) / sizes.known.width
        for a in weights_of(sizes.layout)
        if any(role_of(sizes.layout.model, dim) == "vocabulary" for dim in a.dims)
    ]
    return gradients + saved + LOGITS * sizes.tokens * max(words, default=0.0)
