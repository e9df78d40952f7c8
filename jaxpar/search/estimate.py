"""What a layout costs, by formulas: milliseconds a layout, to decide which are worth compiling.

Products are those of the weights, at measured rates for their sharded sizes; collectives those that
textbooks give a strategy, at measured times. It is no prediction: fusions, schedules and memory are
those of no program. What it refuses is refused for the state alone, which every program holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpar.core.mesh import MeshShape, axes_of, shards
from jaxpar.costs.links import collective_seconds
from jaxpar.costs.rates import Device
from jaxpar.hlo.collectives import Collective
from jaxpar.hlo.products import Product
from jaxpar.layout.record import Array, Layout
from jaxpar.models.record import role_of
from jaxpar.program.fit import tree_bytes
from jaxpar.search.record import Candidate, Estimate
from jaxpar.step.pipeline.head import LEAST
from jaxpar.step.record import Step

WIDE, NARROW = 4, 2
"""Bytes of a parameter or an optimizer's number, and of what is computed with."""

TOUCHED = {"full": 160.0, "minimal": 250.0, "none": 470.0}
"""Remat -> bytes read and written outside of products, for a token, an element of the width and a
layer: of Llama 2 7B's step on 8 described H100s and Llama 3 8B's on 64."""

ALIKE = 0.4
"""The share of them that tensor parallelism alone leaves on every device: norms and residual."""

HIDDEN = {"full": 0.9, "minimal": 0.85, "none": 0.85}
"""Remat -> the share of products beside which weights are gathered and gradients scattered."""

EXPOSED = 0.4
"""The share of gathers of weights and scatters of gradients that schedules expose though work could
hide them: 0.3 of Llama 3 8B's in a node, 0.6 between nodes."""

ATTENTION_SHARE = 0.4
"""Of the peak, that fused attention reaches."""

LOGITS = 10.0
"""Bytes of a token's scores, each: in two types, and their gradient."""

ADDED, ADDED_IN_PLACE = 40.0, 22.0
"""Bytes touched for a parameter by each of several microbatches: it is read and cast, its gradient
written, read and added to a sum; all gradients first and then their sum, or in stages at once."""


@dataclass(frozen=True)
class Facts:
    """What of a model every layout shares.

    Attributes:
        tokens: of a batch; its rows where there is no sequence.
        width: of the residual.
        attention_flops: of a batch, forward and backward, of what no weight is part of.
        optimizer_arrays: bytes of optimizer state for a byte of parameters.
    """

    tokens: int
    width: int
    attention_flops: float
    optimizer_arrays: float


def facts(base: Layout, flops: float, tokens: int, step: Step) -> Facts:
    """The facts of a model.

    Args:
        base: the model on one device.
        flops: of its products, of the whole batch.
        tokens: of a batch, or 0.
        step: of `base`, with the optimizer that is asked for.
    """
    tokens = tokens or base.model.batch_size
    of_weights = 6.0 * tokens * sum(a.size for a in _weights(base))
    widths = [
        size
        for a in base.parameters.values()
        for dim, size in zip(a.dims, a.shape, strict=True)
        if role_of(base.model, dim) == "residual"
    ]
    specs = step.state_specs
    state = tree_bytes(step.state.optimizer, specs.optimizer, base.mesh)
    return Facts(
        tokens, max(widths, default=1), max(0.0, flops - of_weights), state / base.parameter_bytes
    )


def estimate(layout: Layout, candidate: Candidate, known: Facts, device: Device) -> Estimate:
    """Estimate one layout, with the remat and the microbatches of a candidate."""
    return _Estimate(layout, candidate.set, known, device).made()


def _weights(layout: Layout) -> Iterator[Array]:
    """The weights that products are made with: matrices, of an embedding and a head one."""
    ids = [
        a
        for a in layout.parameters.values()
        if any(role_of(layout.model, dim) == "vocabulary" for dim in a.dims)
    ]
    for a in layout.parameters.values():
        layers = _layers(layout, a)
        if len(a.shape) - (layers > 1) >= 2 and not (len(ids) > 1 and a is ids[0]):
            yield a


def _layers(layout: Layout, a: Array) -> int:
    """How many layers an array stacks."""
    return a.shape[0] if a.dims and role_of(layout.model, a.dims[0]) == "layers" else 1


class _Estimate:
    """The estimate of one layout, part by part."""

    def __init__(self, layout: Layout, chosen: Mapping[str, Any], known: Facts, device: Device):
        self.layout, self.mesh, self.known, self.device = layout, layout.mesh, known, device
        config = layout.model.config
        self.remat = str(chosen.get("remat") or getattr(config, "remat", "none"))
        self.parts = int(chosen.get("microbatches", 1))
        self.stages = self.mesh.size("pipe") if layout.strategy.stages else 1
        self.chunks = int(chosen.get("chunks") or 1)
        self.ways = self.mesh.size("model")
        strategy = layout.strategy
        exchanged = self.mesh.size("model") if strategy.attend else 1
        # Tokens of one microbatch on one device.
        self.tokens = known.tokens / layout.row_shares / exchanged / self.parts
        self.splits_residual = "sequence" in strategy.between
        self.shares_head = self.stages > 1 and self._shares_head()

    def made(self) -> Estimate:
        """All of it."""
        inside, outside = self._products()
        work = inside + self._attention() + self._memory() + self._adding()
        gathers, sums = self._weights_moved()
        waits = self._activations_moved()
        hidden = HIDDEN.get(self.remat, 0.85) * inside
        exposed = max(gathers - hidden, EXPOSED * gathers) + 0.7 * sums
        share = (self.stages - 1) / (self.chunks * self.parts)
        busy = work + waits + outside
        parts = {
            "work": work + outside,
            "exposed": waits + exposed,
            "bubble": busy * share if self.stages > 1 else 0.0,
            "update": self._update(),
        }
        state = self._state_bytes()
        return Estimate(sum(parts.values()), parts, int(state), state + self._live_bytes())

    def _shares_head(self) -> bool:
        """Whether all stages compute what comes after the layers, as `jaxpar.step.pipeline` does
        where the vocabulary is large."""
        words = [
            size // self.ways
            for a in _weights(self.layout)
            for dim, size in zip(a.dims, a.shape, strict=True)
            if role_of(self.layout.model, dim) == "vocabulary" and _layers(self.layout, a) == 1
        ]
        return max(words, default=0) * (self.ways if self.splits_residual else 1) >= LEAST

    def _products(self) -> tuple[float, float]:
        """Seconds of products within the layers, and outside of them on the slowest stage."""
        inside = outside = 0.0
        for a in _weights(self.layout):
            layers = _layers(self.layout, a)
            local = a.size / shards(a.used, self.mesh) * (self.stages if layers > 1 else 1)
            each = local / layers
            if layers == 1 and self.shares_head:
                each /= self.stages
            wide = [
                size
                for dim, size in zip(a.dims, a.shape, strict=True)
                if role_of(self.layout.model, dim) == "residual"
            ]
            k = max(1, wide[0] if wide else round(each**0.5))
            n = max(1, round(each / k))
            m = max(1, round(self.tokens))
            forward, back, weight = ((m, n, k), (m, k, n), (k, n, m))
            passes = [forward, back, weight] + ([forward] if self.remat == "full" else [])
            seconds = self.parts * sum(self._product(*shape) for shape in passes)
            if layers > 1:
                inside += seconds * layers / self.stages
            else:
                outside += seconds
        return inside, outside

    def _product(self, m: int, n: int, k: int) -> float:
        """Seconds of one product."""
        return self.device.product_seconds(
            Product("bf16", 1, m, n, k, NARROW * (m * n + k * (m + n)))
        )

    def _attention(self) -> float:
        """Seconds of what no weight is part of; remat computes its forward pass again."""
        devices = self.layout.row_shares * self.ways * self.stages
        again = 4 / 3 if self.remat == "full" else 1.0
        flops = 0.5 * again * self.known.attention_flops / devices
        return flops / (ATTENTION_SHARE * self.device.peak("bf16"))

    def _memory(self) -> float:
        """Seconds of all else in the layers."""
        layers = max((_layers(self.layout, a) for a in self.layout.parameters.values()), default=1)
        size = self.parts * self.tokens * self.known.width * layers / self.stages
        size *= TOUCHED.get(self.remat, TOUCHED["minimal"])
        alike = 0.0 if self.splits_residual or self.ways == 1 else ALIKE
        return size * (alike + (1 - alike) / self.ways) / self.device.memory_bytes_per_second

    def _adding(self) -> float:
        """Seconds in which microbatches add up gradients."""
        if self.parts == 1:
            return 0.0
        held = sum(a.size / shards(a.used, self.mesh) for a in _weights(self.layout))
        each = ADDED if self.stages == 1 else ADDED_IN_PLACE
        return self.parts * each * held / self.device.memory_bytes_per_second

    def _update(self) -> float:
        """Seconds of the update: parameters and state read and written, gradients read."""
        size = sum(
            a.whole_bytes
            / shards(a.optimizer_state, self.mesh)
            * (3 + 2 * self.known.optimizer_arrays)
            for a in self.layout.parameters.values()
        )
        return size / self.device.memory_bytes_per_second

    def _weights_moved(self) -> tuple[float, float]:
        """Seconds of gathers and scatters that work can hide, and of sums after the last layer."""
        gathers = sums = 0.0
        for a in self.layout.parameters.values():
            used = a.size * NARROW / shards(a.used, self.mesh)
            layers = max(1, _layers(self.layout, a) // self.stages)
            each = used / layers
            if gathered := _more(a.stored, a.used):
                # Forward, backward, and the gradient scattered.
                often = 3 * (1 if self.stages > 1 else self.parts)
                gathers += often * layers * self._over("all-gather", each, gathered)
            summed = [
                axis
                for axis in ("replica", "data")
                if self.mesh.size(axis) > 1 and axis in self._row_axes and axis not in gathered
            ]
            if summed:
                scattered = _more(a.optimizer_state, a.stored)
                kind = "reduce-scatter" if scattered else "all-reduce"
                share = a.size * WIDE / shards(a.stored, self.mesh)
                sums += self._over(kind, share, tuple(summed))
                if scattered:
                    sums += self._over("all-gather", share, tuple(summed))
        return gathers, sums

    @property
    def _row_axes(self) -> tuple[str, ...]:
        """The axes over which rows are sharded."""
        return self.layout.row_axes

    def _activations_moved(self) -> float:
        """Seconds of what layers wait for: sums over `model`, exchanges of experts, messages."""
        layers = max((_layers(self.layout, a) for a in self.layout.parameters.values()), default=1)
        residual = self.tokens * self.known.width * NARROW
        seconds = 0.0
        if self.ways > 1:
            splits = any("model" in axes_of(e) for a in _weights(self.layout) for e in a.used)
            each = 4.0 if splits else 0.0
            seconds += each * self._over("all-reduce", residual, ("model",)) * layers / self.stages
            if "expert" in self.layout.strategy.name:
                seconds += 4 * self._over("all-to-all", 2 * residual, ("model",)) * layers
        if self.stages > 1:
            passed = residual / (self.ways if self.splits_residual else 1)
            seconds += 2 * self.chunks * self._message(passed)
            if self.shares_head:
                seconds += 2 * self._over("all-reduce", passed, ("pipe",))
        return self.parts * seconds

    def _over(self, kind: str, size: float, axes: tuple[str, ...]) -> float:
        """Seconds of a collective of a device's `size` bytes over axes of the mesh."""
        return collective_seconds(
            _collective(kind, size, groups=(_first_group(self.mesh, axes),)), self.device
        )

    def _message(self, size: float) -> float:
        """Seconds of a message to the next stage."""
        first, second = _first_group(self.mesh, ("pipe",))[:2]
        return collective_seconds(
            _collective("collective-permute", size, pairs=((first, second),)), self.device
        )

    def _state_bytes(self) -> float:
        """Bytes of parameters and optimizer state on a device, and of gradients that add up."""
        parameters = sum(a.device_bytes(self.mesh) for a in self.layout.parameters.values())
        state = sum(
            a.whole_bytes / shards(a.optimizer_state, self.mesh) * self.known.optimizer_arrays
            for a in self.layout.parameters.values()
        )
        return parameters + state

    def _live_bytes(self) -> float:
        """Bytes of gradients, of what forward keeps, and of scores, roughly."""
        gradients = sum(
            a.whole_bytes / shards(a.gradient, self.mesh) for a in self.layout.parameters.values()
        )
        layers = max((_layers(self.layout, a) for a in self.layout.parameters.values()), default=1)
        kept = {"full": 1.0, "minimal": 0.0, "none": 3.0}.get(self.remat, 0.0) * self.known.width
        if self.remat != "full":
            kept += self.known.width
            for a in _weights(self.layout):
                if _layers(self.layout, a) > 1:
                    each = a.size / shards(a.used, self.mesh) * self.stages / layers
                    kept += self.ways * each / self.known.width
        flying = min(self.stages, self.parts)
        split = self.ways if self.splits_residual or self.remat != "full" else 1
        saved = NARROW * self.tokens * kept * layers / self.stages * flying / split
        words = [
            a.size / shards(a.used, self.mesh) / self.known.width
            for a in _weights(self.layout)
            if any(role_of(self.layout.model, dim) == "vocabulary" for dim in a.dims)
        ]
        return gradients + saved + LOGITS * self.tokens * max(words, default=0.0)


def _more(narrow: Any, wide: Any) -> tuple[str, ...]:
    """The axes over which one spec is sharded and another is not."""
    own = {axis for entry in wide for axis in axes_of(entry)}
    return tuple(axis for entry in narrow for axis in axes_of(entry) if axis not in own)


def _first_group(mesh: MeshShape, axes: tuple[str, ...]) -> tuple[int, ...]:
    """The devices of the first group over these axes of a mesh, numbered row-major."""
    members = [0]
    inner = 1
    for axis, size in reversed(mesh.sizes):
        if axis in axes:
            members = [m + inner * step for step in range(size) for m in members]
        inner *= size
    return tuple(sorted(members))


def _collective(kind: str, size: float, *, groups=(), pairs=()) -> Collective:
    """A collective that no program holds."""
    return Collective(
        name="", kind=kind, groups=groups, pairs=pairs, bytes_each=max(1, round(size)),
        executions=1, exact=True, is_async=True, op_name="", frames=(), borrowed=False,
        operands=(), computation="",
    )  # fmt: skip
