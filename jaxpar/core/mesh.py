"""The shape of a device mesh, as named axis sizes, before any device exists.

A `MeshShape` is a plain value: it can be written down, compared and divided into without a backend.
Only `compile_step` ever puts devices into one.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jaxpar.core.errors import LayoutError, RequestError, expect, sizes_that_work, unknown
from jaxpar.core.kinds import whole

AXES = ("replica", "pipe", "data", "model")
"""The mesh axes there are, slowest links first. `data` splits the batch and `model` the network;
`replica` replicates what is inside it, `pipe` has the network's layers in stages."""

ALWAYS = ("data", "model")
"""The axes that every mesh has, if only of size 1; the others are there when they are asked for."""

MOST_DEVICES = 65_536
"""In one mesh: more than a compiler of today was asked for."""

_SIZE = re.compile(r"[+-]?[0-9]{1,18}")


@dataclass(frozen=True, init=False)
class MeshShape:
    """Sizes of the named mesh axes, outermost (slowest links) first; an axis left out has size 1.

    >>> MeshShape(data=4, model=2).devices
    8
    >>> MeshShape.parse("model=8")
    MeshShape(data=1, model=8)
    """

    sizes: tuple[tuple[str, int], ...]

    def __init__(self, **sizes: int):
        for axis, size in sizes.items():
            if axis not in AXES:
                raise unknown("mesh axis", axis, AXES)
            try:
                sizes[axis] = whole(axis, size, least=1, most=MOST_DEVICES)
            except RequestError:
                raise RequestError(
                    f"mesh axis '{axis}' has size {size}: a size is a whole number of devices, "
                    f"at least 1 and at most {MOST_DEVICES:,}"
                ) from None
        if prod(sizes.values()) > MOST_DEVICES:
            raise RequestError(
                f"mesh {','.join(f'{a}={n}' for a, n in sizes.items())} has "
                f"{prod(sizes.values()):,} devices: use {MOST_DEVICES:,} at most"
            )
        # An axis of size 1 has no place in the order, so equal meshes are equal however written.
        large = [axis for axis, size in sizes.items() if size > 1]
        shown = [axis for axis in AXES if axis in large or axis in ALWAYS]
        usual = [axis for axis in shown if axis in large]
        order = shown if large == usual else (*large, *(a for a in shown if a not in large))
        object.__setattr__(self, "sizes", tuple((axis, sizes.get(axis, 1)) for axis in order))

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Read `axis=size,axis=size`, the spelling of the command line."""
        expect("a mesh's spelling", text, str, "write for example data=4,model=2")
        sizes: dict[str, int] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            axis, equals, size = (piece.strip() for piece in part.partition("="))
            if not axis or not equals or not _SIZE.fullmatch(size):
                raise RequestError(
                    f"mesh '{text}': '{part}' is not axis=size; write for example data=4,model=2"
                )
            if axis in sizes:
                raise RequestError(f"mesh '{text}' gives axis '{axis}' twice; give each axis once")
            sizes[axis] = int(size)
        if text.strip() and not sizes:
            raise RequestError(f"mesh '{text}' names no axis; write for example data=4,model=2")
        return cls(**sizes)

    @classmethod
    def of(cls, mesh: "MeshShape | str | Mesh | AbstractMesh | Mapping[str, int]") -> "MeshShape":
        """The shape that a person means: itself, its spelling, sizes by name, or a mesh of JAX's.

        Of a mesh of JAX's the devices are not kept: `compile_step` takes those of its hardware.
        """
        if isinstance(mesh, str):
            return cls.parse(mesh)
        if isinstance(mesh, Mesh | AbstractMesh):
            return cls(**dict(mesh.shape))
        if isinstance(mesh, Mapping):
            return cls(**{str(axis): size for axis, size in mesh.items()})
        expect("the mesh", mesh, cls, 'say it as "data=4,model=2" or MeshShape(data=4, model=2)')
        return mesh

    @property
    def axes(self) -> tuple[str, ...]:
        """Axis names, outermost first."""
        return tuple(axis for axis, _ in self.sizes)

    @property
    def devices(self) -> int:
        """How many devices the mesh holds."""
        return prod(size for _, size in self.sizes)

    @property
    def abstract(self) -> AbstractMesh:
        """The same shape as JAX's own device-free mesh; see `abstract_mesh`."""
        return abstract_mesh(dict(self.sizes))

    def size(self, axis: str) -> int:
        """How many devices are along `axis`; 1 for an axis that was left out."""
        return dict(self.sizes).get(axis, 1)

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self.sizes)

    def __repr__(self) -> str:
        return f"MeshShape({', '.join(f'{axis}={size}' for axis, size in self.sizes)})"


def abstract_mesh(sizes: Mapping[str, int]) -> AbstractMesh:
    """JAX's own device-free mesh of these sizes.

    Inside a shard_map over some axes of such a mesh it is that mesh, which knows which they are.
    """
    around = jax.sharding.get_abstract_mesh()
    if around.manual_axes and dict(around.shape) == dict(sizes):
        return around
    # JAX 0.12 would make the axes Explicit.
    return AbstractMesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes)
    )


def free_axes(mesh: AbstractMesh) -> frozenset[str]:
    """The axes of `mesh` that no shard_map around has taken."""
    return frozenset(mesh.axis_names) - frozenset(mesh.manual_axes)


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec, as a tuple whatever its spelling."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def entry_of(axes: Iterable[str]) -> str | tuple[str, ...] | None:
    """The entry of a PartitionSpec that shards a dim over these axes, in its plainest spelling."""
    axes = tuple(axes)
    return axes if len(axes) > 1 else (axes[0] if axes else None)


def shards(spec: PartitionSpec, mesh: MeshShape) -> int:
    """How many different shards `spec` makes of an array on `mesh`."""
    return prod(mesh.size(axis) for entry in spec for axis in axes_of(entry))


def check_spec(
    shape: tuple[int, ...], dims: tuple[str, ...], spec: PartitionSpec, mesh: MeshShape
) -> list[str]:
    """What is wrong with sharding an array by `spec`: one sentence per fault, none if legal."""
    faults = []
    used: dict[str, str] = {}
    for size, dim, entry in zip(shape, dims, spec, strict=True):
        for axis in axes_of(entry):
            if axis in used and mesh.size(axis) > 1:
                faults.append(
                    f"mesh axis '{axis}' is asked to split both dim '{used[axis]}' and dim "
                    f"'{dim}', and can split one dim of an array"
                )
            used[axis] = dim
        ways = prod(mesh.size(axis) for axis in axes_of(entry))
        if size % ways:
            over = " x ".join(f"'{axis}'" for axis in axes_of(entry))
            faults.append(
                f"dim '{dim}' has size {size} but mesh axis {over} has {ways} devices, and {ways} "
                f"does not divide {size}: {sizes_that_work(size, ways)}"
            )
    return faults


def refuse_faults(faults: Mapping[str, list[str]]) -> None:
    """Raise one `LayoutError` for the `faults` of arrays, by path; nothing when there are none.

    Arrays with the same fault are named together, as they have one repair.
    """
    arrays: dict[str, list[str]] = {}
    for path, sentences in faults.items():
        for sentence in sentences:
            arrays.setdefault(sentence, []).append(path)
    if arrays:
        raise LayoutError(
            "; ".join(f"{_some(paths)}: {sentence}" for sentence, paths in arrays.items())
        )


def _some(paths: list[str]) -> str:
    """The first four paths for a sentence, and how many more there are."""
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    return ", ".join(dict.fromkeys(paths[:4])) + more


def sizes_of(mesh: MeshShape) -> Mapping[str, int]:
    """Axis sizes by name, outermost first."""
    return dict(mesh.sizes)
