"""What an estimate reads of a layout: sizes on one device, and how its work is split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from jaxpar.core.mesh import axes_of, shards
from jaxpar.layout.record import Array, Layout
from jaxpar.models.record import role_of
from jaxpar.step.pipeline.head import LEAST

WIDE, NARROW = 4, 2
"""Bytes of a parameter or an optimizer's number, and of what is computed with."""


@dataclass(frozen=True)
class Facts:
    """What of a model every layout shares.

    Attributes:
        tokens: of a batch; its rows where there is no sequence.
        width: of the residual.
        attention_flops: of a batch, forward and backward, of what no weight is part of.
        visits: the share of all tokens that each expert computes, where there are experts.
        optimizer_arrays: bytes of optimizer state for a byte of parameters.
    """

    tokens: int
    width: int
    attention_flops: float
    optimizer_arrays: float
    visits: float = 1.0


@dataclass(frozen=True)
class Matrix:
    """The products of a weight in one layer and microbatch on a device.

    Attributes:
        batch: how many products, one for each expert.
        rows: of each.
        residual, other: the sizes of the weight: its residual dim, and all others together.
        makes_residual: whether it makes the residual, and does not read it.
    """

    batch: int
    rows: int
    residual: int
    other: int
    makes_residual: bool

    @property
    def made(self) -> int:
        """Elements of what it makes."""
        return self.batch * self.rows * (self.residual if self.makes_residual else self.other)


class Sizes:
    """The sizes of one layout, with the remat and the microbatches that were chosen.

    Attributes:
        layout, mesh, known: what is estimated.
        remat, parts, chunks: what was chosen; `parts` are microbatches.
        stages, ways: devices along `pipe` and along `model`.
        tokens: of one microbatch on one device.
        splits_residual: whether the residual between the parts of a block is sharded over `model`.
        shares_head: whether all stages compute what comes after the layers.
    """

    def __init__(self, layout: Layout, chosen: Mapping[str, Any], known: Facts):
        """Read them off a layout, and off the fields that were chosen."""
        self.layout, self.mesh, self.known = layout, layout.mesh, known
        config = layout.model.config
        self.remat = str(chosen.get("remat") or getattr(config, "remat", "none"))
        self.parts = int(chosen.get("microbatches", 1))
        self.stages = self.mesh.size("pipe") if layout.strategy.stages else 1
        self.chunks = int(chosen.get("chunks") or 1)
        self.ways = self.mesh.size("model")
        strategy = layout.strategy
        exchanged = self.mesh.size("model") if strategy.attend else 1
        self.tokens = known.tokens / layout.row_shares / exchanged / self.parts
        self.splits_residual = "sequence" in strategy.between
        self.shares_head = self.stages > 1 and self._shares_head()

    @property
    def layers(self) -> int:
        """How many layers the model stacks."""
        return max((layers_of(self.layout, a) for a in self.layout.parameters.values()), default=1)

    def matrix(self, a: Array) -> Matrix:
        """What a weight computes, in each layer that it stacks."""
        layout, layers = self.layout, layers_of(self.layout, a)
        each = a.size / shards(a.used, self.mesh) * (self.stages if layers > 1 else 1) / layers
        wide = [i for i, dim in enumerate(a.dims) if role_of(layout.model, dim) == "residual"]
        batch, rows = 1, self.tokens
        for dim, size, entry in zip(a.dims, a.shape, a.used, strict=True):
            if role_of(layout.model, dim) == "experts":
                ways = prod(self.mesh.size(axis) for axis in axes_of(entry))
                batch, rows = batch * size // ways, rows * ways * self.known.visits
        residual = a.shape[wide[0]] if wide else round((each / batch) ** 0.5)
        return Matrix(
            batch,
            max(1, round(rows)),
            max(1, residual),
            max(1, round(each / batch / max(1, residual))),
            bool(wide) and wide[0] == len(a.dims) - 1,
        )

    def _shares_head(self) -> bool:
        """Whether all stages compute what comes after the layers, as `jaxpar.step.pipeline` does
        where the vocabulary is large."""
        words = [
            size // self.ways
            for a in weights_of(self.layout)
            for dim, size in zip(a.dims, a.shape, strict=True)
            if role_of(self.layout.model, dim) == "vocabulary" and layers_of(self.layout, a) == 1
        ]
        return max(words, default=0) * (self.ways if self.splits_residual else 1) >= LEAST


def weights_of(layout: Layout) -> Iterator[Array]:
    """The weights that products are made with: matrices, of an embedding and a head one."""
    ids = [
        a
        for a in layout.parameters.values()
        if any(role_of(layout.model, dim) == "vocabulary" for dim in a.dims)
    ]
    for a in layout.parameters.values():
        layers = layers_of(layout, a)
        if len(a.shape) - (layers > 1) >= 2 and not (len(ids) > 1 and a is ids[0]):
            yield a


def layers_of(layout: Layout, a: Array) -> int:
    """How many layers an array stacks."""
    return a.shape[0] if a.dims and role_of(layout.model, a.dims[0]) == "layers" else 1
