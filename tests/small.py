"""Small forms of everything in the catalogues, for laws that compile or run.

The catalogues name the entries, so that a new file is held to the laws the moment it exists.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from itertools import cycle
from typing import Any

import jax
import pytest

from jaxpar.case import load_strategy
from jaxpar.core.catalogue import HARDWARE, MODELS, STRATEGIES
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import ALWAYS, MeshShape
from jaxpar.core.nvidia import has_cudnn
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import Layout
from jaxpar.measures.faults import traffic_faults
from jaxpar.measures.traffic import TrafficRow
from jaxpar.models.record import Model
from jaxpar.program.record import Program
from jaxpar.step.own_tree import OwnTree
from jaxpar.strategies.record import Strategy

MODES = ("auto", "manual")
"""The modes that every pair is tried in; `test_explicit` has the third."""

STRATEGY_NAMES = (*STRATEGIES.names(), "fsdp+tensor")

SIZES = {
    "layers": 2,
    "width": 32,
    "heads": 8,
    "kv_heads": 8,
    "head_dim": None,
    "ffn": 64,
    "experts": 4,
    "sequence": 16,
    "vocabulary": 32,
    "channels": 16,
    "side": 4,
    "stages": 1,
    "rope_base": 10_000.0,
}
"""Small values of the sizes that models have; a model takes those of its own fields."""

WHOLE_BELOW = 512
"""Arrays of small models are small: with fsdp's own threshold it would shard none of them."""


@cache
def small_model(name: str, **changes) -> Model:
    """The catalogue's model at small sizes, then with `changes`."""
    model = MODELS.load(name)()
    own = {f.name for f in fields(model.config)} if model.config is not None else set()
    sizes = {field: size for field, size in SIZES.items() if field in own}
    return model.with_fields(**{**sizes, **changes})


@cache
def small_strategy(name: str, **options) -> Strategy:
    """The strategy that `name` spells, cutting small arrays as it would large ones."""
    strategy = load_strategy(name, **options)
    return replace(strategy, whole_below=min(strategy.whole_below, WHOLE_BELOW))


@cache
def small_layout(model: str, strategy: str, mesh: str, batch: int = 16, **changes) -> Layout:
    """A small model under a strategy on `axis=size,...`."""
    return lay_out(
        small_model(model, **changes).with_batch_size(batch),
        strategy=small_strategy(strategy),
        mesh=MeshShape.parse(mesh),
    )


def nested(layout: Layout, values: Mapping[str, Any]) -> dict[Any, Any]:
    """Values by path as the parameters' own tree, which an optimizer is given."""
    return OwnTree.of(layout).nested(values)


def by_path(layout: Layout, tree: Any) -> dict[str, Any]:
    """What a tree like the parameters' own holds, by path."""
    return OwnTree.of(layout).by_path(tree)


def mesh_for(strategy: str) -> str:
    """A mesh of at most sixteen devices on which a strategy has every axis that it uses."""
    more = [axis for axis in load_strategy(strategy).axes if axis not in ALWAYS]
    if not more:
        return "data=4,model=2"
    return ",".join(f"{axis}=2" for axis in (*more, *ALWAYS))


@cache
def suits(model: str, strategy: str) -> bool:
    """Whether a small model can be laid out by a strategy: if not, the laws hold the refusal."""
    try:
        small_layout(model, strategy, mesh_for(strategy))
    except LayoutError:
        return False
    return True


def pairs(*strategies: str) -> list[tuple[str, str]]:
    """Every kind of model with every strategy (of those named, or all) that it can be laid out by.

    Each of the strategies suits one of them at least.
    """
    strategies = strategies or STRATEGY_NAMES
    found = [(m, s) for m in kinds_of_model() for s in strategies if suits(m, s)]
    assert {s for _, s in found} == set(strategies)
    return found


DECODER = "transformer"
FEW = ("fsdp", "hybrid")
"""Rows sharded with weights sharded for storage, and rows with weights sharded for use."""


def crossed() -> list[tuple[str, str, str]]:
    """The pairs that laws compile, modes by turns: what one case shares with another is once.

    The decoder meets every strategy, since it has every role but experts. Other models differ from
    it in operations (convolutions, BatchNorm, experts, no layers in a loop), and those meet each
    way to shard by `FEW`; a strategy that does not suit the decoder meets all that it suits.
    """
    chosen = [(m, s) for m, s in pairs() if m == DECODER or s in FEW or not suits(DECODER, s)]
    turns = cycle((*MODES, *reversed(MODES)))
    return [(m, s, next(turns) if len(modes_of(s)) > 1 else modes_of(s)[0]) for m, s in chosen]


DRAWING = ("fsdp+tensor", "zero1", "pipeline", "expert", "local_sgd", "diloco")
"""Strategies that draw a first state otherwise than others: weights and optimizer state sharded
over both axes, optimizer state alone, layers in another order, experts, replicas of their own."""


def crossed_fully() -> list[Any]:
    """The same pairs in every mode; those that are not `crossed` are for `make claims`."""
    usual, found = crossed(), []
    for m, s in dict.fromkeys((m, s) for m, s, _ in usual):
        marks = [pytest.mark.draws_sharded] if s in DRAWING else []
        for case in ((m, s, mode) for mode in modes_of(s)):
            more = [] if case in usual else [pytest.mark.claims]
            found.append(pytest.param(*case, marks=[*marks, *more]))
    return found


def assert_sharded_as_asked(program: Program) -> None:
    """A state is sharded by its specs as it is created, and as an update takes and leaves it."""
    update, asked = program.probe, jax.tree.leaves(program.state_shardings)
    given, left = update.input_shardings[0][0], update.output_shardings[0]
    state = program.init(0)
    for held in (jax.tree.map(lambda array: array.sharding, state), left, given):
        # What a step does not read is no argument of the program, and has no sharding; of a random
        # key JAX speaks as of the words that it is made of.
        found = jax.tree.leaves(held, is_leaf=lambda leaf: leaf is None)
        for array, sharding, wanted in zip(jax.tree.leaves(state), found, asked, strict=True):
            is_key = jax.numpy.issubdtype(array.dtype, jax.dtypes.extended)
            assert sharding is None or is_key or sharding.is_equivalent_to(wanted, array.ndim)
    for name, sharding in update.input_shardings[0][1].items():
        wanted = program.batch_shardings[name]
        rank = len(program.step.batch[name].shape)
        assert sharding is None or sharding.is_equivalent_to(wanted, rank)


def assert_as_stated(layout: Layout, rows: tuple[TrafficRow, ...], mode: str) -> None:
    """Every kind that a strategy must cause over an axis is there, and none that it never may."""
    assert traffic_faults(layout, rows, mode) == ()
    stated = layout.strategy
    for axis in layout.mesh.axes:
        here = [row for row in rows if axis in row.axes]
        kinds = {kind for row in here for kind in row.kinds}
        never = stated.never.get(axis, frozenset())
        assert not any(row.kinds <= never for row in here if row.kinds)
        assert kinds >= stated.must.get(axis, frozenset())
        assert bool(kinds) == (axis in stated.axes)


def modes_of(strategy: str) -> tuple[str, ...]:
    """The modes in which a strategy's step differs from all others.

    Stages are one step in both modes, and so is a step that shards nothing. An outer step belongs
    to the averaging, which no mode touches; what is inside a replica is that of plain averaging.
    """
    s = load_strategy(strategy)
    alike = s.stages or not s.axes or (s.averaging and not s.averaging.plain)
    return MODES[:1] if alike else MODES


@cache
def kinds_of_model() -> tuple[str, ...]:
    """The models that are no sizes of another: `gpt2` is a `transformer` with other numbers."""
    home = {name: type(MODELS.load(name)().config).__module__ for name in MODELS.names()}
    return tuple(n for n, m in home.items() if m in (f"{MODELS.package}.{n}", "builtins"))


def has_gpu_compiler() -> bool:
    """Whether described GPUs can be compiled for."""
    # The folder jax_plugins is there only with a plugin in it.
    return all(importlib.util.find_spec(name) for name in ("jax_plugins", "jax_plugins.xla_cuda13"))


needs_gpu_compiler = pytest.mark.skipif(
    not has_gpu_compiler(), reason="needs XLA's GPU compiler: pip install jax[cuda13-local]"
)
needs_charts = pytest.mark.skipif(
    not importlib.util.find_spec("vl_convert"), reason="needs pip install 'jaxpar[report]'"
)
needs_cudnn = pytest.mark.skipif(
    not has_cudnn(), reason="needs cuDNN, which pip install 'jaxpar[fused]' brings"
)


def cpu():
    """Simulated devices."""
    return HARDWARE.load("cpu")()
