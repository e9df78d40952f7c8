"""Checkpoints: whatever was saved is there again, under any layout."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from small import small_model
from small_runs import untested

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.core.errors import RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.cpu import hardware as cpu
from jaxpar.layout.lay_out import lay_out
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.checkpoint.about import about_run, named
from jaxpar.runtime.checkpoint.digest import digests
from jaxpar.runtime.checkpoint.folder import checkpoints_in
from jaxpar.runtime.checkpoint.own_state import own_state
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.checkpoint.saving import Saver
from jaxpar.runtime.checkpoint.weights import start_from
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step

TRAINING = Training(steps=6, save_every=2, keep=9)


@cache
def program_of(
    strategy: str, mesh: str, training: Training = TRAINING, *, layers=4, dropout=0.0, **options
):
    """A small decoder of four layers, as many as stages may want, trained under a layout."""
    model = small_model("transformer", layers=layers, vocabulary=256, dropout=dropout)
    layout = lay_out(
        model.with_batch_size(16),
        strategy=load_strategy(strategy, **options),
        mesh=MeshShape.parse(mesh),
    )
    step = make_step(
        layout,
        optimizer=optimizer_of(training, layout),
        microbatches=4 if "pipe" in mesh else 1,
    )
    return compile_step(step, hardware=cpu(), for_speed=False)


@pytest.fixture(scope="module")
def text():
    """Text without a test split, which would take longer than the training."""
    return untested("text", sequence=16)


@pytest.fixture(scope="module")
def hybrid() -> Program:
    return program_of("hybrid", "data=4,model=2")


@pytest.fixture(scope="module")
def run(hybrid, text, tmp_path_factory):
    """A run that nobody interrupted: (its folder, its losses, its outcome)."""
    folder = tmp_path_factory.mktemp("run")
    losses, outcome = losses_of(hybrid, text, TRAINING, checkpoints=folder)
    return folder, losses, outcome


def losses_of(program, data, training, **options):
    seen = {}
    outcome = train(
        program, data, training, watch=lambda step, m: seen.update({step: m["loss"]}), **options
    )
    return seen, outcome


def numbers(program, state) -> dict[str, str]:
    """Name -> the digest of each array of a state, as a checkpoint has it."""
    parts = jax.jit(lambda state: own_state(program.step, state))(state)
    return digests(named(parts))


def alike(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_a_run_saves_as_it_was_told_and_at_the_end(run):
    """Every two steps; with a digest for each array, and what was trained."""
    folder, _, outcome = run
    assert [one.step for one in checkpoints_in(folder)] == [6, 4, 2]
    assert outcome.checkpoint == folder / "6" and outcome.finished
    metadata = checkpoints_in(folder)[0].metadata()
    assert metadata.model == "transformer" and metadata.training["steps"] == 6
    assert metadata.layout["mesh"] == "data=4,model=2" and metadata.data["next_batch"] == 6
    assert metadata.arrays["params/blocks/up"]["sharded"][-1] == ["model"]
    assert all(len(array["digest"]) == 16 for array in metadata.arrays.values())


@pytest.mark.parametrize(
    ("strategy", "mesh", "fields"),
    [
        ("hybrid", "data=4,model=2", {}),
        ("fsdp", "data=4", {"dropout": 0.1, "layers": 1}),
        ("diloco", "replica=2,data=2", {"layers": 1}),
    ],
)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(strategy, mesh, fields, text, tmp_path):
    """The losses that follow and the last state, bit by bit; dropout draws the same masks."""
    program = program_of(strategy, mesh, **fields)
    losses, outcome = losses_of(program, text, TRAINING, checkpoints=tmp_path / "first")
    early, stopped = losses_of(
        program, text, TRAINING, checkpoints=tmp_path / "two", asked_to_stop=lambda done: done == 3
    )
    assert not stopped.finished and stopped.checkpoint == tmp_path / "two" / "3"
    start = restore(program, tmp_path / "two")
    assert start.metadata.step == 3 == int(start.state.step)
    rest, other = losses_of(program, text, TRAINING, state=start, checkpoints=tmp_path / "two")
    assert early | rest == losses and len(rest) == 3
    assert numbers(program, outcome.state) == numbers(program, other.state)
    names = [one.step for one in checkpoints_in(tmp_path / "two")]
    assert names == [6, 4, 3, 2] and other.checkpoint == tmp_path / "two" / "6"


@pytest.mark.parametrize(
    ("strategy", "mesh", "options"),
    [
        ("hybrid", "data=2,model=4", {}),
        ("fsdp", "data=8", {}),
        ("tensor", "model=8", {}),
        ("single", "data=1", {}),
        ("pipeline", "pipe=2,data=2", {}),
        ("pipeline", "pipe=2,data=2", {"schedule": "interleaved", "chunks": 2}),
    ],
)
def test_it_goes_on_under_any_layout(strategy, mesh, options, run, text):
    """The arrays right after are those that were saved, to the bit; losses follow to rounding."""
    folder, losses, _ = run
    program = program_of(strategy, mesh, **options)
    start = restore(program, folder / "4")
    saved = {name: array["digest"] for name, array in start.metadata.arrays.items()}
    assert numbers(program, start.state) == saved
    for array, wanted in zip(
        jax.tree.leaves(start.state), jax.tree.leaves(program.state_shardings), strict=True
    ):
        assert array.sharding.is_equivalent_to(wanted, array.ndim)
    again, _ = losses_of(program, text, TRAINING, state=start)
    assert again[5] == pytest.approx(losses[5], rel=1e-5)
    assert again[6] == pytest.approx(losses[6], rel=1e-4)


def test_layers_that_stages_store_in_another_order_are_saved_in_their_own(run, text, tmp_path):
    """What interleaved stages save, one device reads."""
    folder, losses, _ = run
    stages = program_of("pipeline", "pipe=2,data=2", schedule="interleaved", chunks=2)
    start = restore(stages, folder / "4")
    losses_of(
        stages, text, TRAINING, state=start, checkpoints=tmp_path, asked_to_stop=lambda _: True
    )
    single = program_of("single", "data=1")
    again, _ = losses_of(single, text, TRAINING, state=restore(single, tmp_path))
    assert again == {6: pytest.approx(losses[6], rel=1e-4)}


class Net(nnx.Module):
    """Queries, keys and values in one matrix, which a layout stores in pieces; and BatchNorm."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(16, 48, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)])

    def __call__(self, x):
        """(rows, 4, 16) to the same."""
        q, k, v = (
            y.reshape(*x.shape[:2], 4, 4) for y in jnp.split(self.blocks[0](self.norm(x)), 3, -1)
        )
        y = jax.nn.dot_product_attention(q, k, v)
        return self.blocks[1](y.reshape(x.shape))


class LinenNet(nn.Module):
    """The like in Linen."""

    @nn.compact
    def __call__(self, x, train=True):
        """(rows, 4, 16) to the same."""
        x = nn.BatchNorm(use_running_average=not train)(x)
        q, k, v = (
            y.reshape(*x.shape[:2], 4, 4) for y in jnp.split(nn.Dense(48, name="qkv")(x), 3, -1)
        )
        return nn.Dense(16)(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


@pytest.mark.parametrize("made", [lambda: lambda rngs: Net(rngs), LinenNet], ids=["nnx", "linen"])
def test_plain_orbax_and_flax_read_a_persons_own_tree(made, tmp_path):
    """Without jaxpar: its names, its matrices whole, its statistics, and it computes the same."""
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    net = made()
    model = jaxpar.model(
        net, lambda net, b: jnp.mean((net(b["x"]) - b["y"]) ** 2), {"x": x, "y": x}
    )
    layout = jaxpar.lay_out(model, strategy="tensor", mesh="model=4")
    assert model.cuts  # the matrix is stored in pieces
    program = compile_step(
        make_step(layout, optimizer=optax.adam(1e-2)), hardware=cpu(), for_speed=False
    )
    state, _ = program.update(program.init(0), program.place({"x": x, "y": x}))
    saver = Saver(program, tmp_path, keep=1, about=about_run(program))
    saver.save(state, 1, {})
    saver.close()
    found, statistics = (
        jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(tmp_path / "1" / part))
        for part in ("params", "model_state")
    )
    if isinstance(net, nn.Module):
        own = net.init(jax.random.key(0), x)
        assert jax.tree.structure(found) == jax.tree.structure(own["params"])
        own = {"params": found, "batch_stats": {"BatchNorm_0": statistics["BatchNorm_0"]}}
        y = jnp.asarray(net.apply(own, x, train=False))
    else:
        plain = Net(nnx.Rngs(0))
        graph, learned, rest = nnx.split(plain, nnx.Param, ...)
        abstract = nnx.to_pure_dict(learned)
        found = ocp.StandardCheckpointer().restore(tmp_path / "1" / "params", abstract)
        assert found["blocks"][0]["kernel"].shape == (16, 48)
        nnx.replace_by_pure_dict(learned, jax.tree.map(np.asarray, found))
        plain = nnx.merge(graph, learned, rest)
        for name in ("mean", "var"):
            getattr(plain.norm, name)[...] = statistics["norm"][name]
        plain.eval()
        y = plain(x)
    ours = jax.device_get(program.evaluate(state, program.place({"x": x, "y": x})))["loss"]
    assert float(jnp.mean((y - x) ** 2)) == pytest.approx(float(ours.value), rel=1e-5)
    # And back, which joins and cuts again.
    again = restore(program, tmp_path)
    assert numbers(program, again.state) == numbers(program, state)


@pytest.mark.parametrize(
    ("strategy", "mesh", "options"),
    [
        ("fsdp", "data=4", {}),
        ("pipeline", "pipe=2,data=2", {"schedule": "interleaved", "chunks": 2}),
        ("local_sgd", "replica=2,data=2", {}),
    ],
)
def test_weights_from_elsewhere_start_a_run(strategy, mesh, options, run, tmp_path):
    """A tree, what plain Orbax wrote, and a checkpoint of ours: the same weights, at step 0."""
    folder, _, _ = run
    program = program_of(strategy, mesh, **options)
    reader = ocp.StandardCheckpointer()
    tree = jax.tree.map(np.asarray, reader.restore(folder / "6" / "params"))
    reader.save(tmp_path / "plain", tree)
    reader.wait_until_finished()
    saved = checkpoints_in(folder)[0].metadata().arrays
    for weights in (tree, tmp_path / "plain", folder / "6", str(folder)):
        state = start_from(program, weights)
        found = {k: v for k, v in numbers(program, state).items() if k.startswith("params/")}
        assert found == {k: saved[k]["digest"] for k in found} and len(found) == 10
        assert int(state.step) == 0
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    assert start_from(program, narrow).parameters["head"].dtype == jnp.float32
    for name, value, sentence in (
        ("head", np.zeros((3, 3)), "'head' has shape .3, 3., and in the model it has shape .32, 2"),
        ("tail", np.zeros(3), "'tail' has shape .3,., and in the model it is not there"),
    ):
        with pytest.raises(RequestError, match=sentence):
            start_from(program, {**tree, name: value})
    with pytest.raises(RequestError, match="there is no such folder"):
        start_from(program, tmp_path / "nowhere")
    with pytest.raises(RequestError, match="no tree of Orbax's is there"):
        start_from(program, tmp_path)
