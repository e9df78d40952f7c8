"""The Strategy record, and how two strategies become a hybrid.

A strategy is a pair of tables from roles to mesh axes: over which axes a dim is sharded in use, and
how stored weights are sharded further between uses. (Two mappings, one for compute and one for
storage, is Haliax's definition of FSDP, and the shortest correct one.) It also states which
collectives it must and must never cause on each axis, so that a law can hold the compiled program
to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Any

from jaxpar.core.catalogue import STRATEGIES
from jaxpar.core.errors import LayoutError, RequestError, expect, unknown
from jaxpar.core.kinds import whole
from jaxpar.core.mesh import AXES, axes_of
from jaxpar.core.roles import check_role

ALL_REDUCE = "all-reduce"
ALL_GATHER = "all-gather"
GATHER_WEIGHTS, GATHER_ACTIVATIONS = f"{ALL_GATHER} of weights", f"{ALL_GATHER} of activations"
REDUCE_SCATTER = "reduce-scatter"
ALL_TO_ALL = "all-to-all"
PERMUTE = "collective-permute"
KINDS = frozenset(
    {ALL_REDUCE, GATHER_WEIGHTS, GATHER_ACTIVATIONS, REDUCE_SCATTER, ALL_TO_ALL, PERMUTE}
)
"""XLA's collective kinds, spelled as XLA spells them, gathers by what they gather.

`ALL_GATHER` is a gather of anything.
"""


SHARDABLE = ("parameters", "gradients", "optimizer_state")
"""What of a weight can be stored sharded between uses (Rajbhandari et al. 2020)."""


@dataclass(frozen=True)
class Stages:
    """How a stack of equal layers is run as stages.

    Attributes:
        schedule: catalogue name of the order in which stages work on microbatches.
        chunks: pieces of the stack that each device holds; above 1 only where a schedule says so.
        pad: whether a layer count that does not divide is filled up with layers that do nothing.
        gather: how often weights that are stored sharded are gathered: once a "step", once forward
            and once backward for each "microbatch", or "auto", which is "step" while little is
            held for it; see `jaxpar.layout.gathering`.
        head: who computes what comes after the layers: the "last" stage, "all" stages, each with
            its share of the vocabulary, or "auto", which is "all" where that is sooner; see
            `jaxpar.step.pipeline.head`.

    Raises:
        RequestError: another word for `gather` or `head`.
    """

    schedule: str
    chunks: int = 1
    pad: bool = False
    gather: str = "auto"
    head: str = "auto"

    def __post_init__(self):
        if self.gather not in GATHERS:
            raise unknown("gather", self.gather, GATHERS)
        if self.head not in HEADS:
            raise unknown("head", self.head, HEADS)


GATHERS = ("auto", "step", "microbatch")
"""How often a pipeline's stages gather weights that are stored sharded."""

HEADS = ("auto", "all", "last")
"""Which of a pipeline's stages compute what comes after the layers."""


REPLICA = "replica"
"""The mesh axis along which replicas are placed."""


@dataclass(frozen=True)
class Averaging:
    """Replicas that train by themselves and average their parameters now and then.

    Attributes:
        every: updates between two averagings; 0 averages only at the end of training.
        outer_rate, outer_momentum: the step that is taken along the averaged change, with Nesterov
            momentum (DiLoCo, Douillard et al. 2023); 1 and 0 take the average itself.
    """

    every: int
    outer_rate: float = 1.0
    outer_momentum: float = 0.0

    def __post_init__(self):
        if not 0 < self.outer_rate < inf:
            raise RequestError(f"outer_rate={self.outer_rate}: use a number above 0")
        if not 0 <= self.outer_momentum < 1:
            raise RequestError(
                f"outer_momentum={self.outer_momentum}: use a number from 0 up to, not including, 1"
            )

    @property
    def plain(self) -> bool:
        """Whether an averaging takes the average itself, and so remembers nothing."""
        return (self.outer_rate, self.outer_momentum) == (1.0, 0.0)


@dataclass(frozen=True)
class Strategy:
    """How a network is sharded, as tables from roles to mesh axes.

    Attributes:
        name: as typed on the command line.
        compute: role -> mesh axes (one may be given as its name), for activations and for weights
            while they are in use.
        between: role -> mesh axes, for the residual between the parts of a block, where these say
            more than `compute` does.
        store: mesh axis -> roles in order of preference. What `sharded` names of each weight is
            sharded over that axis along the first of its dims in this order that divides.
        sharded: of `SHARDABLE`, what `store` shards: parameters (gathered for use), gradients,
            optimizer state.
        needs: roles without which a model gains nothing from this strategy, and is refused.
        whole_below: arrays with fewer elements than this are not sharded by `store`; the layout
            says which.
        attend: catalogue name of the exchange by which attention sees a split sequence, or None.
        stages: how layers are run as stages, or None for one after another.
        averaging: how replicas of local SGD synchronise; None for other strategies.
        must: mesh axis -> collective kinds the compiled step has to contain when the axis is larger
            than 1 and the model has a dim that the strategy splits over it.
        never: mesh axis -> collective kinds the compiled step may not contain.
    """

    name: str
    compute: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    between: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    store: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sharded: frozenset[str] = frozenset(SHARDABLE)
    needs: frozenset[str] = frozenset()
    whole_below: int = 0
    attend: str | None = None
    stages: Stages | None = None
    averaging: Averaging | None = None
    must: Mapping[str, frozenset[str]] = field(default_factory=dict)
    never: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self):
        expect("the name of a strategy", self.name, str, "give a word")
        whole("whole_below", self.whole_below)
        for table in ("compute", "between"):
            tuples = {role: axes_of(axes) for role, axes in getattr(self, table).items()}
            object.__setattr__(self, table, tuples)
        for role in (*self.compute, *self.between, *(r for rs in self.store.values() for r in rs)):
            check_role(role)
        for axis in (*(a for axes in self._tables for a in axes), *self.store):
            if axis not in AXES:
                raise unknown("mesh axis", axis, AXES)
        for table in ("compute", "between", "store", "must", "never"):
            object.__setattr__(self, table, MappingProxyType(dict(getattr(self, table))))

    @classmethod
    def of(cls, strategy: "Strategy | str") -> "Strategy":
        """The strategy that a person means: itself, or names of the catalogue joined by +."""
        if isinstance(strategy, str):
            each = [STRATEGIES.load(name)() for name in parts(strategy)]
            return each[0] if len(each) == 1 else combine(*each)
        expect(
            "the strategy", strategy, cls, "give its name, or what STRATEGIES.load(name)() makes"
        )
        return strategy

    @property
    def _tables(self) -> tuple[tuple[str, ...], ...]:
        """The axes of every entry of `compute` and of `between`."""
        return tuple(map(axes_of, (*self.compute.values(), *self.between.values())))

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes this strategy uses."""
        used = {axis for axes in self._tables for axis in axes} | set(self.store)
        return tuple(axis for axis in AXES if axis in used)

    def roles_on(self, axis: str) -> frozenset[str]:
        """The roles of dims that are sharded over `axis` in use."""
        return frozenset(role for role, axes in self.compute.items() if axis in axes)


def combine(*strategies: Strategy, name: str | None = None) -> Strategy:
    """Both (or all) at once: the union of their tables. Rows may be sharded over several.

    Raises:
        LayoutError: when two of them want one axis for different things, or differ in what can be
            decided once only (a schedule, an exchange, what is stored sharded, how replicas
            average).
    """
    for each in strategies:
        expect("what combine joins", each, Strategy, "jaxpar.STRATEGIES.load(name)() makes one")
    first, *others = strategies
    for other in others:
        first = _pair(first, other)
    return first if name is None else replace(first, name=name)


def _pair(a: Strategy, b: Strategy) -> Strategy:
    """The strategy `a+b`; LayoutError when they contradict."""
    _refuse_contradictions(a, b)
    axes = set(a.must) | set(b.must) | set(a.never) | set(b.never)
    must = {axis: _on(a.must, axis) | _on(b.must, axis) for axis in axes}
    # Where both use an axis, what one of them needs the other may not forbid.
    never = {axis: (_on(a.never, axis) | _on(b.never, axis)) - must[axis] for axis in axes}
    for one, other in ((a, b), (b, a)):
        for axis in set(one.axes) & set(other.axes):
            never[axis] &= _on(other.never, axis)
    return Strategy(
        name=f"{a.name}+{b.name}",
        compute=_union(a.compute, b.compute),
        between=_union(a.between, b.between),
        store={
            axis: a.store.get(axis, ())
            + tuple(r for r in b.store.get(axis, ()) if r not in a.store.get(axis, ()))
            for axis in [*a.store, *(axis for axis in b.store if axis not in a.store)]
        },
        sharded=a.sharded if a.store else b.sharded,
        needs=a.needs | b.needs,
        whole_below=max(a.whole_below, b.whole_below),
        attend=a.attend or b.attend,
        stages=a.stages or b.stages,
        averaging=a.averaging or b.averaging,
        must=must,
        never=never,
    )


def _refuse_contradictions(a: Strategy, b: Strategy) -> None:
    """Raise LayoutError with both names when `a` and `b` cannot be one strategy."""
    both = f"strategies '{a.name}' and '{b.name}' cannot be combined: "
    for role in sorted(a.compute.keys() & b.compute.keys()):
        if role != "batch" and a.compute[role] != b.compute[role]:
            raise LayoutError(
                f"{both}'{a.name}' splits role '{role}' over axis '{' x '.join(a.compute[role])}' "
                f"and '{b.name}' over '{' x '.join(b.compute[role])}'; a dim has one place, so "
                "choose one of the two"
            )
    for axis in AXES:
        mine, theirs = a.roles_on(axis), b.roles_on(axis)
        if mine and theirs and not (mine <= theirs or theirs <= mine):
            raise LayoutError(
                f"{both}both want mesh axis '{axis}', '{a.name}' for {_listed(mine)} and "
                f"'{b.name}' for {_listed(theirs)}; an axis does one thing, so choose one of the "
                "two"
            )
    if (a.stages or b.stages) and (a.averaging or b.averaging):
        raise LayoutError(
            f"{both}replicas that average are each mapped over devices, and so are the stages of a "
            "pipeline; one map at a time, so choose one of the two"
        )
    if a.store and b.store and a.sharded != b.sharded:
        raise LayoutError(
            f"{both}'{a.name}' stores {_listed(a.sharded)} sharded and '{b.name}' "
            f"{_listed(b.sharded)}; choose one of the two"
        )
    for one, other in ((a, b), (b, a)):
        if one.averaging and not other.averaging and REPLICA in other.axes:
            raise LayoutError(
                f"{both}'{one.name}' trains a replica at each place along mesh axis "
                f"'{REPLICA}', and '{other.name}' shards one model over the same axis; choose one "
                "of the two"
            )
    for what, noun in (
        ("attend", "how attention sees a split sequence"),
        ("stages", "how stages take turns"),
        ("averaging", "how replicas average"),
    ):
        mine, theirs = getattr(a, what), getattr(b, what)
        if mine and theirs and mine != theirs:
            raise LayoutError(f"{both}each decides {noun}; choose one of the two")


def _listed(words: Iterable[str]) -> str:
    """Words in alphabetical order for a sentence: "a, b and c"; underscores become spaces."""
    *most, last = sorted(word.replace("_", " ") for word in words)
    return f"{', '.join(most)} and {last}" if most else last


def _union(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Role -> the axes that either table gives it, in the order of `AXES`."""
    return {
        role: tuple(axis for axis in AXES if axis in (*a.get(role, ()), *b.get(role, ())))
        for role in [*a, *(role for role in b if role not in a)]
    }


def _on(table: Mapping[str, frozenset[str]], axis: str) -> frozenset[str]:
    """The collective kinds that a table `must` or `never` has for `axis`."""
    return table.get(axis, frozenset())


def parts(text: str) -> tuple[str, ...]:
    """The names in `fsdp+tensor`, refusing an empty one, and one that is there twice.

    >>> parts("fsdp+tensor")
    ('fsdp', 'tensor')
    """
    names = tuple(piece.strip() for piece in text.split("+"))
    if not all(names):
        raise RequestError(f"strategy '{text}': a name is missing beside '+'; write fsdp+tensor")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"strategy '{text}': '{twice}' is there twice; name each once")
    return names
