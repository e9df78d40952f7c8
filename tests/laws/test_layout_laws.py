"""Laws of layouts over the whole catalogue, and of who may import whom. No device is touched."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from itertools import product
from math import prod
from pathlib import Path

import pytest
from jax.sharding import NamedSharding
from small import MODES, STRATEGY_NAMES, kinds_of_model, mesh_for, pairs, suits

from jaxpar.case import load_strategy
from jaxpar.core.catalogue import CATALOGUES, MODELS
from jaxpar.core.errors import LayoutError
from jaxpar.core.mesh import MeshShape, axes_of
from jaxpar.core.roles import UNNAMED
from jaxpar.layout.lay_out import lay_out
from jaxpar.layout.record import itemsize

MESHES = ("data=1", "data=8", "data=4,model=2", "model=4,data=2", "model=8", "data=64,model=8")
FEW_MESHES = ("data=8", "data=64,model=8")
"""For models that are sizes of another."""

PAIRS = tuple(product(MODELS.names(), STRATEGY_NAMES))
ROOT = Path(__file__).parents[2]


@cache
def with_rows(model: str, rows: int):
    """The catalogue's model for so many rows: its module is built once for all layouts."""
    return MODELS.load(model)().with_batch_size(rows)


@cache
def laid_out(model: str, strategy: str, mesh: str):
    """The layout at the model's own sizes, or None where it is refused."""
    shape = MeshShape.parse(mesh)
    # Enough rows for every shard, so that what is refused is the network.
    rows = max(MODELS.load(model)().batch_size, shape.size("data"))
    try:
        return lay_out(with_rows(model, rows), strategy=load_strategy(strategy), mesh=shape)
    except LayoutError:
        return None


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def layouts(request):
    """The layouts of a pair on every mesh that takes it: at least the one that shards nothing.

    Of the module's scope, so that all laws are asked of one pair before the next is laid out.
    """
    model, strategy = request.param
    meshes = MESHES if model in kinds_of_model() else FEW_MESHES
    found = [laid_out(model, strategy, mesh) for mesh in (*meshes, mesh_for(strategy))]
    found = [layout for layout in found if layout is not None]
    assert found or not suits(model, strategy), f"{model} under {strategy} is refused everywhere"
    return found


def arrays_of(layout):
    arrays = [*layout.parameters.values(), *layout.state.values()]
    assert arrays
    return arrays


def test_a_spec_has_an_entry_for_every_dim_of_its_array(layouts):
    """Specs have their arrays' rank: parameters, state and batch, stored and in use."""
    for layout in layouts:
        for array in arrays_of(layout):
            assert len(array.stored) == len(array.used) == len(array.shape), array.path
            assert len(array.dims) == len(array.shape), array.path
        for name, spec in layout.batch.items():
            assert len(spec) == len(layout.model.batch[name].shape), name


def test_no_axis_stands_twice_in_one_spec(layouts):
    """A mesh axis splits at most one dim of an array, and it is an axis of the mesh."""
    for layout in layouts:
        specs = [spec for a in arrays_of(layout) for spec in (a.stored, a.used)]
        for spec in (*specs, *layout.batch.values()):
            axes = [axis for entry in spec for axis in axes_of(entry)]
            assert len(axes) == len(set(axes)), spec
            assert set(axes) <= set(layout.mesh.axes), spec


def test_the_bytes_on_all_devices_are_whole_replicas(layouts):
    """Shard bytes x devices = bytes x replicas, one for every place along the axes not used.

    The shard's shape is JAX's own, so a dim that does not divide, or a wrong count, shows.
    """
    for layout in layouts:
        mesh = layout.mesh
        for array in arrays_of(layout):
            used = {axis for entry in array.stored for axis in axes_of(entry)}
            replicas = prod(size for axis, size in mesh.sizes if axis not in used)
            shard = NamedSharding(mesh.abstract, array.stored).shard_shape(array.shape)
            shard_bytes = prod(shard) * itemsize(array.dtype)
            assert shard_bytes * mesh.devices == array.whole_bytes * replicas, array.path
            assert array.device_bytes(mesh) == shard_bytes, array.path


@pytest.mark.parametrize("strategy", STRATEGY_NAMES)
def test_a_strategy_splits_something_on_each_axis_that_it_uses(strategy):
    """Nothing stays replicated in silence: over its axes a strategy shards every small model.

    A strategy whose tables name no role of a model would leave it whole and verify perfectly.
    """
    axes = load_strategy(strategy).axes
    for model, _ in pairs(strategy):
        layout = laid_out(model, strategy, mesh_for(strategy))
        assert layout is not None
        specs = [spec for a in arrays_of(layout) for spec in (a.stored, a.used)]
        specs += [a.optimizer_state for a in arrays_of(layout)]
        used = {x for s in (*specs, *layout.batch.values()) for e in s for x in axes_of(e)}
        assert used == set(axes), model


@pytest.mark.parametrize("strategy", STRATEGY_NAMES)
def test_the_axes_that_a_strategy_leaves_alone_are_noted(strategy):
    """Devices that do the same work are a choice that the layout says in words."""
    layout = laid_out(pairs(strategy)[0][0], strategy, mesh_for(strategy))
    for axis in ("data", "model"):
        assert layout is not None
        said = any(f"axis '{axis}'" in note for note in layout.notes)
        assert said == (axis not in load_strategy(strategy).axes), layout.notes


@pytest.mark.parametrize("model", MODELS.names())
def test_every_dim_has_a_name(model):
    """Every dim of every parameter, of the state and of the batch is named."""
    layout = laid_out(model, "single", "data=1")
    assert layout is not None
    for array in arrays_of(layout):
        assert UNNAMED not in array.dims, f"{array.path}: {array.dims}"
        assert all(array.dims), f"{array.path}: {array.dims}"
    assert layout.model.batch
    for name, field in layout.model.batch.items():
        assert UNNAMED not in field.dims and all(field.dims), f"batch/{name}: {field.dims}"


# Published: Radford et al. 2019 (as released: 124M with the tied head counted once), Touvron et al.
# 2023, Dubey et al. 2024, Jiang et al. 2024; the sums of the released checkpoints' shapes.
PUBLISHED = {
    "gpt2": 124_439_808,
    "llama2_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "mixtral_8x7b": 46_702_792_704,
}


def parameter_count(model: str) -> int:
    layout = laid_out(model, "single", "data=1")
    assert layout is not None
    return sum(a.size for a in layout.parameters.values())


@pytest.mark.parametrize(("model", "count"), PUBLISHED.items())
def test_sized_models_have_the_published_parameter_counts(model, count):
    """A model by another's name is that model: its parameters are as many as were published."""
    assert parameter_count(model) == count


def test_a_count_in_a_models_first_line_is_its_count():
    """What the catalogue says of a size is true."""
    stated = {}
    for name in MODELS.names():
        match = re.search(r"([\d,]+) parameters", MODELS.summary(name))
        if match:
            stated[name] = int(match[1].replace(",", ""))
    assert len(stated) >= len(PUBLISHED)
    for name, count in stated.items():
        assert parameter_count(name) == count, name


WITHOUT_DEVICES = """
import json, sys
from itertools import product
import jax
from jaxpar.case import load_strategy
from jaxpar.core.catalogue import DATA, HARDWARE, MODELS, OPTIMIZERS, STRATEGIES
from jaxpar.layout.lay_out import lay_out
from jaxpar.core.mesh import MeshShape
from jaxpar.program.record import compile_step
from jaxpar.core.errors import LayoutError
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step

strategies, kinds, modes = json.loads(sys.argv[1])
hardware = {name: HARDWARE.load(name)() for name in HARDWARE.names()}
for name in DATA.names():
    DATA.load(name)
digits = lay_out(MODELS.load("mlp")(), strategy=load_strategy("data"), mesh=MeshShape(data=2))
for name in OPTIMIZERS.names():
    make_step(digits, optimizer=optimizer_of(Training(optimizer=name), digits))
made, refused = [], []
models = {name: MODELS.load(name)() for name in MODELS.names()}
for model, (strategy, mesh) in product(models, strategies.items()):
    try:
        layout = lay_out(
            models[model], strategy=load_strategy(strategy), mesh=MeshShape.parse(mesh)
        )
        for mode in modes if model in kinds else ():
            make_step(layout, mode=mode)
        made.append((model, strategy, mesh))
    except LayoutError as refusal:
        refused.append((model, strategy, mesh, str(refusal)))
try:
    jax.devices()
    devices = "found"
except RuntimeError:
    devices = "none"
print(json.dumps({"made": made, "refused": refused, "devices": devices}))
"""


@pytest.fixture(scope="module")
def made_without_devices():
    """Where JAX has no backend at all: import, load, lay out every pair, make each kind's step."""
    asked = json.dumps([{s: mesh_for(s) for s in STRATEGY_NAMES}, kinds_of_model(), MODES])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_DEVICES, asked],
        env={**os.environ, "JAX_PLATFORMS": "nosuch"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_no_device_is_touched_before_a_step_is_compiled(made_without_devices):
    """Import, load, lay_out and make_step work where asking for a device would raise."""
    assert made_without_devices["devices"] == "none"
    made = {tuple(case) for case in made_without_devices["made"]}
    assert {(m, s) for m, s, _ in made} >= set(pairs())


def test_the_only_refusals_are_layout_errors_that_name_both_sizes(made_without_devices):
    """What cannot be laid out is refused as LayoutError (others would have ended the walk).

    Of the catalogue only GPT-2's vocabulary, 50,257 = 29 x 1733, does not divide by 2; any other
    refusal is of a model that has not got what the strategy splits, and names both.
    """
    refused = made_without_devices["refused"]
    unsuited = re.compile(r"model '\w+' .*strategy '[\w+]+'")
    for model, strategy, _, sentence in refused:
        if model == "gpt2" and "'vocab' has size 50257" in sentence:
            assert "model" in load_strategy(strategy).axes, (model, strategy)
            assert "'model' has 2 devices" in sentence, sentence
        else:
            assert unsuited.search(sentence), sentence
    walked = {(m, s) for m, s, *_ in (*refused, *made_without_devices["made"])}
    assert walked == set(PAIRS)


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FLOORS = [line.split()[1:] for line in re.findall(r"^ ?\d+ {2}[a-z ]+$", CONTRIBUTING, re.M)]
"""From the ground up, as CONTRIBUTING.md has them: a room imports from the floors below it."""

LEVEL = {room: level for level, row in enumerate(FLOORS) for room in row}
OWNERS = {
    # A library -> the rooms that may know of it.
    "rich": ("jaxpar/cli",),
    "absl": ("jaxpar/cli",),
    "vl_convert": ("jaxpar/report/charts.py",),
    "sklearn": ("jaxpar/data/digits.py",),
    "pytest": ("jaxpar/testing",),
    # Placing takes layers apart; a probe remakes a model's build in another dtype.
    "flax": (
        "experiments/any_model.py",  # a model that nobody wrote for jaxpar
        "experiments/benchmarks",  # sets jaxpar beside the same module under bare JAX
        "jaxpar/models",
        "jaxpar/inference",
        "jaxpar/layout",
    ),
    "optax": (
        "jaxpar/optimizers",
        "jaxpar/step",
        "jaxpar/measures/verify/reference.py",
        "experiments/benchmarks",
        "experiments/any_model.py",
    ),
}


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 10
    return found


@cache
def imports(path: Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function, by dotted name."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room_of(dotted: str) -> str | None:
    """The room of `jaxpar.models.mlp` is models; None for what is not jaxpar's."""
    package, _, rest = dotted.partition(".")
    return rest.partition(".")[0] if package == "jaxpar" else None


@pytest.mark.parametrize("path", sources("jaxpar"), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    """A room imports what stands above it in the tree, never below, never sideways."""
    own = path.relative_to(ROOT / "jaxpar").parts[0].removesuffix(".py")
    if own == "__init__":  # the public names, from every room
        return
    assert own in LEVEL, f"jaxpar/{own} is new: give it its place in FLOORS"
    for dotted in imports(path):
        room = room_of(dotted)
        if room is None or room == own:
            continue
        assert room in LEVEL, f"{path.name} imports jaxpar.{room}, which has no place in FLOORS"
        assert LEVEL[room] < LEVEL[own], f"{own} imports {room}: against the arrows"


def test_every_room_has_its_place_and_every_catalogue_is_a_room():
    """The list of rooms is that of the folder, so that no room escapes the law above."""
    there = {
        p.stem
        for p in (ROOT / "jaxpar").iterdir()
        if (p.suffix == ".py" or (p / "__init__.py").is_file()) and p.stem != "__init__"
    }
    assert there - set(LEVEL) == set()
    assert {c.package.split(".")[1] for c in CATALOGUES} <= there
    assert 5 < len(FLOORS) <= 10


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_a_library_is_known_only_where_it_belongs(library, owners):
    """Flax in models and where modules are taken apart, rich on the screen, sklearn in digits."""
    users = {
        str(path.relative_to(ROOT))
        for path in sources("jaxpar", "experiments")
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert users, f"{library} is used nowhere: take it out of this table"
    strays = {user for user in users if not any(Path(user).is_relative_to(o) for o in owners)}
    assert strays == set()


def test_jaxpar_never_imports_experiments():
    """The package knows nothing of those who use it."""
    for path in sources("jaxpar"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert not roots & {"experiments", "tests"}, path


def test_models_name_no_mesh_axis_and_strategies_no_model():
    """M models and S strategies cost M + S files: neither's text holds the other's words."""
    axes, models = {"data", "model"}, set(MODELS.names())
    for path in sources("jaxpar/models", "jaxpar/strategies"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {
            n.value
            for n in ast.walk(tree)
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
        if path.is_relative_to(ROOT / "jaxpar/models"):
            assert not words & axes - {path.stem}, path
        else:
            assert not words & models, path
