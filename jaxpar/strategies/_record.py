"""The Strategy record, and how two strategies become a hybrid.

A strategy is a pair of tables from roles to mesh axes: where a dim lies while it is computed with,
and how stored weights are cut further between uses. (Two mappings, one for compute and one for
storage, is Haliax's definition of FSDP, and the shortest correct one.) It also states which
collectives it must and must never cause on each axis, so that a law can hold the compiled program
to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from jaxpar.mesh import AXES
from jaxpar.refusal import LayoutError, RequestError, unknown
from jaxpar.roles import check_role

ALL_REDUCE = "all-reduce"
ALL_GATHER = "all-gather"
REDUCE_SCATTER = "reduce-scatter"
ALL_TO_ALL = "all-to-all"
PERMUTE = "collective-permute"
KINDS = frozenset({ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL, PERMUTE})
"""XLA's collective kinds, spelled as XLA spells them."""


@dataclass(frozen=True)
class Strategy:
    """How a network is split, said in roles and mesh axes.

    Attributes:
        name: as typed on the command line.
        compute: role -> mesh axis, for activations and for weights while they are in use.
        store: mesh axis -> roles in order of preference. Each weight, with its gradient and
            optimizer moments, is cut over that axis along the first of its dims in this order that
            divides, and gathered for use.
        whole_below: arrays with fewer elements than this are not cut by `store`; the layout says
            which.
        must: mesh axis -> collective kinds the compiled step has to contain when the axis is larger
            than 1 and the model has a dim that the strategy splits over it.
        never: mesh axis -> collective kinds the compiled step may not contain.
    """

    name: str
    compute: Mapping[str, str] = field(default_factory=dict)
    store: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whole_below: int = 0
    must: Mapping[str, frozenset[str]] = field(default_factory=dict)
    never: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self):
        for role, axis in self.compute.items():
            check_role(role)
            if axis not in AXES:
                raise unknown("mesh axis", axis, AXES)
        for axis, roles in self.store.items():
            if axis not in AXES:
                raise unknown("mesh axis", axis, AXES)
            for role in roles:
                check_role(role)
        for table in ("compute", "store", "must", "never"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes this strategy uses."""
        used = set(self.compute.values()) | set(self.store)
        return tuple(axis for axis in AXES if axis in used)


def combine(*strategies: Strategy, name: str | None = None) -> Strategy:
    """Both (or all) at once: the union of their tables.

    Raises:
        LayoutError: when two of them send one role to different axes.
    """
    first, *others = strategies
    for other in others:
        first = _pair(first, other)
    return first if name is None else Strategy(**{**_fields(first), "name": name})


def _pair(a: Strategy, b: Strategy) -> Strategy:
    for role in a.compute.keys() & b.compute.keys():
        if a.compute[role] != b.compute[role]:
            raise LayoutError(
                f"strategies '{a.name}' and '{b.name}' cannot be combined: '{a.name}' splits role "
                f"'{role}' over axis '{a.compute[role]}' and '{b.name}' over '{b.compute[role]}'; "
                "a dim lies on one axis, so choose one of the two"
            )
    axes = set(a.must) | set(b.must) | set(a.never) | set(b.never)
    must = {axis: _on(a.must, axis) | _on(b.must, axis) for axis in axes}
    # Where both use an axis, what one of them needs the other may not forbid.
    never = {axis: (_on(a.never, axis) | _on(b.never, axis)) - must[axis] for axis in axes}
    for one, other in ((a, b), (b, a)):
        for axis in set(one.axes) & set(other.axes):
            never[axis] &= _on(other.never, axis)
    return Strategy(
        name=f"{a.name}+{b.name}",
        compute={**a.compute, **b.compute},
        store={
            axis: a.store.get(axis, ())
            + tuple(r for r in b.store.get(axis, ()) if r not in a.store.get(axis, ()))
            for axis in [*a.store, *(axis for axis in b.store if axis not in a.store)]
        },
        whole_below=max(a.whole_below, b.whole_below),
        must=must,
        never=never,
    )


def _on(table: Mapping[str, frozenset[str]], axis: str) -> frozenset[str]:
    return table.get(axis, frozenset())


def _fields(strategy: Strategy) -> dict:
    return {
        "name": strategy.name,
        "compute": strategy.compute,
        "store": strategy.store,
        "whole_below": strategy.whole_below,
        "must": strategy.must,
        "never": strategy.never,
    }


def parts(text: str) -> tuple[str, ...]:
    """The names in `fsdp+tensor`, refusing an empty one.

    >>> parts("fsdp+tensor")
    ('fsdp', 'tensor')
    """
    names = tuple(piece.strip() for piece in text.split("+"))
    if not all(names):
        raise RequestError(f"strategy '{text}': a name is missing beside '+'; write fsdp+tensor")
    return names
