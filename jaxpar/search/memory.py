"""What a layout holds on a device, by formulas: its state for certain, and the rest roughly."""

from __future__ import annotations

from jaxpar.core.mesh import shards
from jaxpar.models.record import role_of
from jaxpar.search.sizes import NARROW, Sizes, layers_of, weights_of

LOGITS = 6.0
"""Bytes of a token's scores, each: in two types."""

BESIDE = {"none": 2.0}
"""Remat -> residuals that a layer keeps beside its input and what its weights make."""


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
    whole = sizes.tokens * sizes.known.width
    residual = whole / (sizes.ways if sizes.splits_residual else 1)
    # Kept beside are the inputs of products, as they arrived: whole where the residual is sharded.
    kept = residual + whole * BESIDE.get(sizes.remat, 0.0)
    if sizes.remat != "full":
        made = [sizes.matrix(a) for a in weights_of(sizes.layout) if layers_of(sizes.layout, a) > 1]
        kept += sum(residual if one.makes_residual else one.made for one in made)
    flying = min(sizes.stages, sizes.parts)
    saved = NARROW * kept * layers / sizes.stages * flying
    words = [
        a.size / shards(a.used, sizes.mesh) / sizes.known.width
        for a in weights_of(sizes.layout)
        if any(role_of(sizes.layout.model, dim) == "vocabulary" for dim in a.dims)
    ]
    scores = LOGITS * sizes.tokens * max(words, default=0.0)
    # A sum of gradients stands beside the next ones, when no activation is left.
    adds = gradients if sizes.parts > 1 and sizes.stages == 1 else 0.0
    return gradients + max(saved + scores, adds)
