"""What a layout costs, by formulas: milliseconds a layout, to decide which are worth compiling.

Products are those of the weights, at measured rates for their sharded sizes; collectives those that
textbooks give a strategy, at measured times. It is no prediction: fusions, schedules and memory are
those of no program. What it refuses is refused for the state alone, which every program holds.
"""

from __future__ import annotations

from jaxpar.core.mesh import shards
from jaxpar.costs.rates import Device
from jaxpar.hlo.products import Product
from jaxpar.layout.record import Array, Layout
from jaxpar.models.record import role_of
from jaxpar.program.fit import tree_bytes
from jaxpar.search.memory import live_bytes, state_bytes
from jaxpar.search.record import Candidate, Estimate
from jaxpar.search.sizes import NARROW, Facts, Sizes, layers_of, weights_of
from jaxpar.search.traffic import Traffic
from jaxpar.step.record import Step

TOUCHED = {"full": 160.0, "minimal": 250.0, "none": 300.0}
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

CAST, ADDED, ADDED_IN_PLACE = 8.0, 26.0, 22.0
"""Bytes touched by each of several microbatches: for a parameter in use, which is read and cast;
for one of the gradients' shard, which is written, read and added to a sum, after all gradients are
made; in stages for one in use, at once. Of programs of Llama 2 7B and of a decoder of 1.5 billion
parameters under `fsdp` and `data` on described H100s."""


def facts(base: Layout, flops: float, tokens: int, step: Step) -> Facts:
    """The facts of a model.

    Args:
        base: the model on one device.
        flops: of its products, of the whole batch.
        tokens: of a batch, or 0.
        step: of `base`, with the optimizer that is asked for.
    """
    tokens = tokens or base.model.batch_size
    weights = list(weights_of(base))
    widths = _widths(base)
    width, each = max(widths, default=1), 6.0 * tokens
    shared = sum(a.size for a in weights if not _is_of_experts(base, a))
    of_experts = sum(a.size for a in weights if _is_of_experts(base, a))
    visits = 1.0
    if of_experts:
        # All scores of attention, two products and their gradients, as if it were as wide.
        layers = max(layers_of(base, a) for a in weights)
        scores = 2 * each * tokens / base.model.batch_size * width * layers
        visits = min(1.0, max(0.0, (flops / each - shared - scores / each) / of_experts))
    of_weights = each * (shared + visits * of_experts)
    specs = step.state_specs
    state = tree_bytes(step.state.optimizer, specs.optimizer, base.mesh)
    return Facts(tokens, width, max(0.0, flops - of_weights), state / base.parameter_bytes, visits)


def _widths(base: Layout) -> list[int]:
    """The sizes of the dims of the residual."""
    return [
        size
        for a in base.parameters.values()
        for dim, size in zip(a.dims, a.shape, strict=True)
        if role_of(base.model, dim) == "residual"
    ]


def _is_of_experts(base: Layout, a: Array) -> bool:
    """Whether an array has a part for each expert."""
    return any(role_of(base.model, dim) == "experts" for dim in a.dims)


def estimate(layout: Layout, candidate: Candidate, known: Facts, device: Device) -> Estimate:
    """Estimate one layout, with the remat and the microbatches of a candidate."""
    sizes = Sizes(layout, candidate.set, known)
    return _Work(sizes, device).made()


class _Work:
    """What one layout computes on a device, part by part, and all of its estimate."""

    def __init__(self, sizes: Sizes, device: Device):
        self.sizes, self.layout, self.mesh, self.device = sizes, sizes.layout, sizes.mesh, device

    def made(self) -> Estimate:
        """All of it."""
        inside, outside = self._products()
        work = inside + self._attention() + self._memory() + self._adding()
        traffic = Traffic(self.sizes, self.device)
        gathers, sums = traffic.weights_moved()
        waits = traffic.activations_moved()
        hidden = HIDDEN.get(self.sizes.remat, 0.85) * inside
        exposed = max(gathers - hidden, EXPOSED * gathers) + 0.7 * sums
        share = (self.sizes.stages - 1) / (self.sizes.chunks * self.sizes.parts)
        busy = work + waits + outside
        parts = {
            "work": work + outside,
            "exposed": waits + exposed,
            "bubble": busy * share if self.sizes.stages > 1 else 0.0,
            "update": self._update(),
        }
        state = state_bytes(self.sizes)
        return Estimate(sum(parts.values()), parts, int(state), state + live_bytes(self.sizes))

    def _products(self) -> tuple[float, float]:
        """Seconds of products within the layers, and outside of them on the slowest stage."""
        inside = outside = 0.0
        for a in weights_of(self.layout):
            layers = layers_of(self.layout, a)
            one = self.sizes.matrix(a)
            m, k, n = one.rows, one.residual, one.other
            if layers == 1 and self.sizes.shares_head:
                n = max(1, n // self.sizes.stages)
            forward, back, weight = ((m, n, k), (m, k, n), (k, n, m))
            passes = [forward, back, weight] + ([forward] if self.sizes.remat == "full" else [])
            seconds = self.sizes.parts * sum(self._product(one.batch, *shape) for shape in passes)
            if layers > 1:
                inside += seconds * layers / self.sizes.stages
            else:
                outside += seconds
        return inside, outside

    def _product(self, batch: int, m: int, n: int, k: int) -> float:
        """Seconds of so many products."""
        size = NARROW * batch * (m * n + k * (m + n))
        return self.device.product_seconds(Product("bf16", batch, m, n, k, size))

    def _attention(self) -> float:
        """Seconds of what no weight is part of; remat computes its forward pass again."""
        devices = self.layout.row_shares * self.sizes.ways * self.sizes.stages
        again = 4 / 3 if self.sizes.remat == "full" else 1.0
        flops = 0.5 * again * self.sizes.known.attention_flops / devices
        return flops / (ATTENTION_SHARE * self.device.peak("bf16"))

    def _memory(self) -> float:
        """Seconds of all else in the layers."""
        layers = self.sizes.layers
        size = (
            self.sizes.parts
            * self.sizes.tokens
            * self.sizes.known.width
            * layers
            / self.sizes.stages
        )
        size *= TOUCHED.get(self.sizes.remat, TOUCHED["minimal"])
        alike = 0.0 if self.sizes.splits_residual or self.sizes.ways == 1 else ALIKE
        return size * (alike + (1 - alike) / self.sizes.ways) / self.device.memory_bytes_per_second

    def _adding(self) -> float:
        """Seconds in which microbatches add up gradients."""
        if self.sizes.parts == 1:
            return 0.0
        arrays = list(weights_of(self.layout))
        used = sum(a.size / shards(a.used, self.mesh) for a in arrays)
        summed = sum(a.size / shards(a.gradient, self.mesh) for a in arrays)
        size = CAST * used + ADDED * summed if self.sizes.stages == 1 else ADDED_IN_PLACE * used
        return self.sizes.parts * size / self.device.memory_bytes_per_second

    def _update(self) -> float:
        """Seconds of the update: parameters and state read and written, gradients read."""
        size = sum(
            a.whole_bytes
            / shards(a.optimizer_state, self.mesh)
            * (3 + 2 * self.sizes.known.optimizer_arrays)
            for a in self.layout.parameters.values()
        )
        return size / self.device.memory_bytes_per_second
