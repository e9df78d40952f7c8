"""Who holds what: the shards of an array on a mesh, and the devices that have each of them.

Devices are numbered as the mesh has them, its last axis fastest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod


@dataclass(frozen=True)
class Placement:
    """An array on a mesh.

    Attributes:
        shape, dims: its sizes, and a name for each.
        spec: the mesh axes over which each dim is sharded, none for a replicated one.
        mesh: size of each axis, outermost first.
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    spec: tuple[tuple[str, ...], ...]
    mesh: Mapping[str, int]

    @classmethod
    def of(cls, array: Mapping, mesh: Mapping[str, int]) -> "Placement":
        """That of an array as a record has it."""
        spec = tuple(tuple(axes) for axes in array["spec"])
        return cls(tuple(array["shape"]), tuple(array["dims"]), spec, mesh)

    def ways(self, dim: int) -> int:
        """How many shards a dim is in."""
        return prod(self.mesh.get(axis, 1) for axis in self.spec[dim])

    @property
    def shard_shape(self) -> tuple[int, ...]:
        """The sizes of one shard."""
        return tuple(size // self.ways(dim) for dim, size in enumerate(self.shape))

    @property
    def shards(self) -> int:
        """How many different shards there are."""
        return prod(self.ways(dim) for dim in range(len(self.shape)))

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return prod(self.mesh.values())

    @property
    def holders(self) -> int:
        """How many devices have the same shard."""
        return self.devices // self.shards

    @property
    def free_axes(self) -> tuple[str, ...]:
        """The axes over which it is replicated, without those of size 1."""
        used = {axis for axes in self.spec for axis in axes}
        return tuple(axis for axis, size in self.mesh.items() if size > 1 and axis not in used)

    def number(self, shard: Sequence[int]) -> int:
        """A shard's number, given its place along each dim; the last dim is fastest."""
        number = 0
        for dim, place in enumerate(shard):
            number = number * self.ways(dim) + place
        return number

    def rows(self, dim: int, place: int) -> str:
        """The indices of one shard along a dim, `0-127`."""
        size = self.shape[dim] // self.ways(dim)
        first, last = place * size, (place + 1) * size - 1
        return f"{first:,}" if first >= last else f"{first:,}-{last:,}"

    def held_by(self, shard: Sequence[int]) -> Iterator[int]:
        """The devices that have a shard, ascending where axes are in the mesh's order.

        >>> one = Placement((4, 6), ("a", "b"), ((), ("model",)), {"data": 2, "model": 3})
        >>> [list(one.held_by((0, place))) for place in range(3)]
        [[0, 3], [1, 4], [2, 5]]
        """
        at: dict[str, int] = {}
        for dim, place in enumerate(shard):
            for axis in reversed(self.spec[dim]):
                at[axis] = place % self.mesh.get(axis, 1)
                place //= self.mesh.get(axis, 1)
        ranges = [[at[axis]] if axis in at else range(size) for axis, size in self.mesh.items()]
        for coordinates in product(*ranges):
            number = 0
            for size, coordinate in zip(self.mesh.values(), coordinates, strict=True):
                number = number * size + coordinate
            yield number

    def holders_text(self, shard: Sequence[int], most: int = 6) -> str:
        """The devices that have a shard, in few words."""
        if self.holders == self.devices:
            return "all" if self.devices > 1 else "0"
        several = list(islice(self.held_by(shard), self.holders if self.holders <= 64 else most))
        runs = _runs(several)
        if len(several) == self.holders and len(runs) <= most // 2:
            return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
        if self.holders <= most:
            return ", ".join(map(str, several))
        return f"{several[0]}, {several[1]}, ... ({self.holders:,} devices)"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as first and last of each unbroken run."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
