"""Checkpoints of replicas of local SGD go on as other replicas, or as none, and the other way."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest
from small import small_layout

from jaxpar.core.errors import RequestError
from jaxpar.hardware.cpu import hardware as cpu
from jaxpar.inference.probe import probe_batch
from jaxpar.program.record import Program, compile_step
from jaxpar.runtime.checkpoint.about import about_run
from jaxpar.runtime.checkpoint.own_state import own_state
from jaxpar.runtime.checkpoint.restoring import restore
from jaxpar.runtime.checkpoint.saving import Saver
from jaxpar.runtime.training import Training, optimizer_of
from jaxpar.step.make_step import make_step


@cache
def program_of(strategy: str, mesh: str) -> Program:
    """A small convolutional network: its batch statistics differ between replicas too."""
    layout = small_layout("convnet", strategy, mesh, batch=48, channels=8, stages=1)
    step = make_step(layout, optimizer=optimizer_of(Training(), layout))
    return compile_step(step, hardware=cpu(), for_speed=False)


def saved(strategy, mesh, folder):
    """The parts of a state after one update, which is saved there."""
    program = program_of(strategy, mesh)
    batch = program.place(probe_batch(program.step.layout.model, 1))
    state, _ = program.update(program.init(0), batch)
    saver = Saver(program, folder, keep=1, about=about_run(program))
    saver.save(state, 1, {})
    saver.close()
    return folder, parts(program, state)


def parts(program, state):
    """What a checkpoint of a state would hold, as numpy arrays."""
    return jax.device_get(jax.jit(lambda state: own_state(program.step, state))(state))


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four replicas apart from each other."""
    return saved("local_sgd", "replica=4,data=2", tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def outer(tmp_path_factory):
    """Two replicas with an anchor and a momentum."""
    return saved("diloco", "replica=2", tmp_path_factory.mktemp("outer"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run without replicas."""
    return saved("fsdp", "data=4", tmp_path_factory.mktemp("alone"))


def alike(tree, other, each=lambda x: x):
    """Whether each array of a tree is what `each` makes of the other's, to the bit."""
    pairs = zip(*map(jax.tree.leaves, (tree, other)), strict=True)
    return all(np.array_equal(x, each(y)) for x, y in pairs)


def mean_of(x):
    """Of the replicas' arrays the mean, or of what is no float the first."""
    if not np.issubdtype(x.dtype, np.floating):
        return x[0]
    return x.mean(0)


@pytest.mark.parametrize(
    ("strategy", "mesh"),
    [
        ("local_sgd", "replica=2,data=2"),
        ("local_sgd", "replica=8"),
        ("local_sgd+fsdp", "replica=3"),
        ("diloco", "replica=2,data=4"),
        ("fsdp", "data=8"),
        ("single", "data=1"),
    ],
)
def test_other_replicas_go_on_from_the_mean(strategy, mesh, four):
    """Parameters, statistics and optimizer state: that of all, in each; keys stay a replica's."""
    folder, was = four
    for tree in (was["replicas"]["params"], was["replicas"]["model_state"], was["optimizer"]):
        assert not alike(tree, tree, lambda x: x[:1] + 0 * x)  # they are apart
    program = program_of(strategy, mesh)
    start = restore(program, folder)
    now = parts(program, start.state)
    count = program.step.layout.mesh.size("replica") if "replicas" in now else 0
    told = f"{count or 'no'} replicas of local SGD: {'each' if count else 'it'} goes on from their"
    assert len(start.notes) == 1 and told in start.notes[0]
    for array, wanted in zip(
        jax.tree.leaves(start.state), jax.tree.leaves(program.state_shardings), strict=True
    ):
        assert array.sharding.is_equivalent_to(wanted, array.ndim)
    assert now["rest"]["step"] == was["rest"]["step"] == 1
    for name in ("params", "model_state"):
        each = (lambda x: np.broadcast_to(x, (count, *x.shape))) if count else (lambda x: x)
        assert alike(now["replicas"][name] if count else now[name], was[name], each)
    front = (lambda x: np.broadcast_to(mean_of(x), (count, *x.shape[1:]))) if count else mean_of
    means = jax.tree.map(front, was["optimizer"])  # which devices sum in another order
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), now["optimizer"], means)
    keys, before = now["rest"]["key"], was["rest"]["key"]
    assert np.array_equal(keys[:4] if count else keys, before[:count] if count else before[0])
    assert not count or len(np.unique(keys, axis=0)) == count
    if strategy == "diloco":
        assert alike(now["rest"]["anchor"], was["params"]) and "momentum starts" in start.notes[0]
        assert all(not x.any() for x in jax.tree.leaves(now["rest"]["momentum"]))


def test_as_many_replicas_stay_as_they_are(four, outer):
    """Each its own, on another mesh too; an anchor comes, stays or goes with the strategy."""
    for (folder, was), strategy, mesh in (
        (four, "local_sgd", "replica=4,data=4"),
        (four, "diloco", "replica=4"),
        (outer, "diloco", "replica=2,data=2"),
        (outer, "local_sgd", "replica=2,data=2"),
    ):
        program = program_of(strategy, mesh)
        start = restore(program, folder)
        now = parts(program, start.state)
        for name in ("replicas", "optimizer"):
            assert alike(now[name], was[name])
        assert np.array_equal(now["rest"]["key"], was["rest"]["key"])
        assert ("anchor" in now["rest"]) == (strategy == "diloco")
        if strategy == "diloco" and folder == outer[0]:
            assert alike(now["rest"], was["rest"]) and not start.notes


def test_an_anchor_and_a_momentum_outlive_another_number_of_replicas(outer):
    """They are the run's own, and no replica's."""
    program = program_of("diloco", "replica=4")
    now = parts(program, restore(program, outer[0]).state)
    for name in ("anchor", "momentum"):
        assert alike(now["rest"][name], outer[1]["rest"][name])


def test_a_run_without_replicas_goes_on_with_some_and_back(alone, tmp_path):
    """Each begins with what is there and a key of its own; their mean is then what it was."""
    folder, was = alone
    program = program_of("local_sgd", "replica=4,data=2")
    start = restore(program, folder)
    assert start.notes == (
        "the checkpoint has no replicas of local SGD, and this run 4 replicas of local SGD: each "
        "goes on from the state that is there",
    )
    now = parts(program, start.state)
    for tree, other in (
        (now["replicas"]["params"], was["params"]),
        (now["replicas"]["model_state"], was["model_state"]),
        (now["optimizer"], was["optimizer"]),
    ):
        assert alike(tree, other, lambda x: np.broadcast_to(x, (4, *x.shape)))
    fresh = parts(program, program.init(0))["rest"]["key"]
    assert np.array_equal(now["rest"]["key"], fresh)
    saver = Saver(program, tmp_path, keep=1, about=about_run(program))
    saver.save(start.state, 1, {})
    saver.close()
    back = parts(
        program_of("fsdp", "data=4"), restore(program_of("fsdp", "data=4"), tmp_path).state
    )
    for name in ("params", "model_state", "optimizer"):
        assert alike(back[name], was[name])


def test_more_replicas_than_a_device_can_read_are_refused(four):
    """A file may tell of any number."""
    program = program_of("single", "data=1")
    small = replace(program, hardware=replace(program.hardware, memory_bytes=40_000))
    with pytest.raises(RequestError, match="it has 4 replicas of local SGD, 0.0 GB of a device"):
        restore(small, four[0])
