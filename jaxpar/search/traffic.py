"""What a layout moves between devices, by formulas: seconds of the collectives of textbooks."""

from __future__ import annotations

from typing import Any

from jaxpar.core.mesh import MeshShape, axes_of, shards
from jaxpar.costs.links import collective_seconds
from jaxpar.costs.rates import Device
from jaxpar.hlo.collectives import Collective
from jaxpar.search.sizes import NARROW, WIDE, Sizes, layers_of, weights_of


class Traffic:
    """The collectives of one layout on one device."""

    def __init__(self, sizes: Sizes, device: Device):
        """Of these sizes."""
        self.sizes, self.layout, self.mesh, self.device = sizes, sizes.layout, sizes.mesh, device

    def weights_moved(self) -> tuple[float, float]:
        """Seconds of gathers and scatters that work can hide, and of sums after the last layer."""
        gathers = sums = 0.0
        for a in self.layout.parameters.values():
            used = a.size * NARROW / shards(a.used, self.mesh)
            layers = max(1, layers_of(self.layout, a) // self.sizes.stages)
            each = used / layers
            if gathered := _more(a.stored, a.used):
                # Forward, backward, and the gradient scattered.
                often = 3 * (1 if self.sizes.stages > 1 else self.sizes.parts)
                gathers += often * layers * self._over("all-gather", each, gathered)
            summed = [
                axis
                for axis in ("replica", "data")
                if self.mesh.size(axis) > 1
                and axis in self.layout.row_axes
                and axis not in gathered
            ]
            if summed:
                scattered = _more(a.optimizer_state, a.stored)
                kind = "reduce-scatter" if scattered else "all-reduce"
                share = a.size * WIDE / shards(a.stored, self.mesh)
                sums += self._over(kind, share, tuple(summed))
                if scattered:
                    sums += self._over("all-gather", share, tuple(summed))
        return gathers, sums

    def activations_moved(self) -> float:
        """Seconds of what layers wait for: sums over `model`, exchanges of experts, messages."""
        layers = self.sizes.layers
        residual = self.sizes.tokens * self.sizes.known.width * NARROW
        seconds = 0.0
        if self.sizes.ways > 1:
            splits = any("model" in axes_of(e) for a in weights_of(self.layout) for e in a.used)
            if splits:
                seconds += self._summed(residual) * layers / self.sizes.stages
            if "expert" in self.layout.strategy.name:
                seconds += 4 * self._over("all-to-all", 2 * residual, ("model",)) * layers
        if self.sizes.stages > 1:
            passed = residual / (self.sizes.ways if self.sizes.splits_residual else 1)
            seconds += 2 * self.sizes.chunks * self._message(passed)
            if self.sizes.shares_head:
                seconds += 2 * self._over("all-reduce", residual, ("pipe",))
        return self.sizes.parts * seconds

    def _summed(self, residual: float) -> float:
        """Seconds of a layer's sums over `model`, two forward and two backward.

        Where the residual is sharded they are scattered, and gathered before the next product; what
        was gathered is fetched again for backward unless all is kept. With nothing kept the first
        sum is made again.
        """
        remat = self.sizes.remat
        if not self.sizes.splits_residual:
            return (5 if remat == "full" else 4) * self._over("all-reduce", residual, ("model",))
        scattered = self._over("reduce-scatter", residual, ("model",))
        gathered = self._over("all-gather", residual, ("model",))
        return (5 if remat == "full" else 4) * scattered + (4 if remat == "none" else 6) * gathered

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
