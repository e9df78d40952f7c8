"""Replicas of local SGD: what they compute, when they synchronise, their collectives, refusals.

In float64 unless said; expected values are worked out by optax or by hand.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import cpu, small_layout

from jaxpar.case import load_strategy
from jaxpar.core.catalogue import DATA
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.core.mesh import MeshShape
from jaxpar.inference.probe import probe_batch, widened
from jaxpar.layout.lay_out import lay_out
from jaxpar.measures.faults import traffic_faults
from jaxpar.measures.inspect import inspect
from jaxpar.measures.verify.verify import verify
from jaxpar.program.record import compile_step
from jaxpar.runtime.train import train
from jaxpar.runtime.training import Training
from jaxpar.step.averaging import outer_step
from jaxpar.step.make_step import make_step
from jaxpar.strategies.record import Averaging

pytestmark = pytest.mark.usefixtures("drawn_once")

ROUNDING = 1e-12
"""Float64 sums in another order; 1e-15 is usual."""


def compiled(model, strategy, mesh, **how):
    layout = small_layout(model, strategy, mesh)
    return compile_step(make_step(layout, **how), hardware=cpu(), for_speed=False)


def worst(got, right):
    return max(float(np.max(np.abs(np.asarray(got[p]) - np.asarray(right[p])))) for p in right)


def test_the_outer_step_is_optaxs_nesterov():
    """Three synchronisations in a row, against optax.sgd(nesterov=True) on anchor minus mean."""
    averaging = Averaging(1, outer_rate=0.7, outer_momentum=0.9)
    rng = np.random.default_rng(0)
    anchor = {"w": rng.standard_normal((3, 5)).astype("float32")}
    outer = {"anchor": anchor, "momentum": {"w": np.zeros((3, 5), "float32")}}
    sgd = optax.sgd(0.7, momentum=0.9, nesterov=True)
    right: Any = anchor
    memory = sgd.init(anchor)
    for _ in range(3):
        means = {"w": right["w"] + rng.standard_normal((3, 5)).astype("float32")}
        change = jax.tree.map(lambda a, m: a - m, right, means)
        step, memory = sgd.update(change, memory)
        right = optax.apply_updates(right, step)
        after, outer = outer_step(averaging, outer, means)
        np.testing.assert_allclose(after["w"], right["w"], rtol=1e-5, atol=1e-5)  # float32, sizes 1
        assert outer["anchor"] is after


def test_rate_one_without_momentum_is_the_mean():
    """Where `plain` takes the mean at once, the outer step would have come to the same."""
    assert Averaging(8).plain and not Averaging(8, outer_rate=0.7).plain
    means, zeros = {"w": np.full(3, 2.0)}, {"w": np.zeros(3)}
    after, _ = outer_step(Averaging(8), {"anchor": {"w": np.ones(3)}, "momentum": zeros}, means)
    np.testing.assert_array_equal(after["w"], means["w"])


def test_averaging_every_update_of_plain_sgd_is_data_parallelism():
    """With equal weights: the mean of steps is the step of the mean gradient, from one start.

    With uneven weights it is another: a mean of the replicas' means, and the law says by how much.
    """
    with jax.enable_x64(True):
        sgd = optax.sgd(0.1)
        states = {}
        for strategy in ("local_sgd", "replica"):
            small = small_layout("mlp", strategy, "replica=4")
            layout = lay_out(
                widened(small.model), strategy=small.strategy, mesh=MeshShape(replica=4)
            )
            program = compile_step(
                make_step(layout, optimizer=sgd), hardware=cpu(), for_speed=False
            )
            for uneven in (False, True):
                batch = probe_batch(layout.model, 0)
                if not uneven:
                    batch["weight"][:] = 1.0
                state = program.init(0)
                for _ in range(3):
                    state, _ = program.update(state, program.place(batch))
                    if (average := program.average) is not None:
                        state = average(state)
                replicas = state.parameters
                if strategy == "local_sgd":
                    replicas = {p: v[0] for p, v in replicas.items()}
                states[strategy, uneven] = {p: np.asarray(v) for p, v in replicas.items()}
    assert worst(states["local_sgd", False], states["replica", False]) < ROUNDING
    assert worst(states["local_sgd", True], states["replica", True]) > 1e-5


@pytest.mark.parametrize("every", [3, 0])
def test_training_averages_every_so_often_and_at_the_end(every):
    """Seven steps of `train` are seven updates, averaged after 3, 6 and 7, or after 7 alone."""
    layout = small_layout("mlp", "local_sgd", "replica=2")
    strategy = load_strategy("local_sgd", every=every)
    layout = lay_out(layout.model, strategy=strategy, mesh=layout.mesh)
    program = compile_step(make_step(layout), hardware=cpu(), for_speed=False)
    data, training = DATA.load("digits")(), Training(steps=7)
    trained = train(program, data, training).state
    state = program.init(training.seed)
    for done in range(1, 8):
        rows = data.batch(done - 1, size=16, seed=training.seed, rows=slice(0, 16))
        state, _ = program.update(state, program.place(rows))
        if done in ((3, 6, 7) if every else (7,)):
            average = program.average
            assert average is not None
            state = average(state)
    for path, value in state.parameters.items():
        np.testing.assert_array_equal(value, trained.parameters[path])
        np.testing.assert_array_equal(value[0], value[1])


def test_what_is_tested_is_the_average_of_the_replicas():
    """Of replicas that differ, evaluation is a plain step's of their mean, on the whole batch."""
    program = compiled("convnet", "local_sgd", "replica=2,data=2")
    plain = compiled("convnet", "single", "data=1")
    batch = probe_batch(program.step.layout.model, 0)
    state, _ = program.update(program.init(0), program.place(batch))
    assert any(not np.array_equal(v[0], v[1]) for v in state.parameters.values())
    mean = {
        name: {p: np.mean(np.asarray(v), axis=0) for p, v in getattr(state, name).items()}
        for name in ("parameters", "model_state")
    }
    right = plain.step.evaluate(replace(plain.init(0), **mean), batch)
    got = program.evaluate(state, program.place(batch))
    for name, value in right.items():
        assert float(got[name].value) == pytest.approx(float(value.value), rel=1e-5)  # float32


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("mlp", "diloco+zero1+tensor"),
        ("convnet", "local_sgd+fsdp+tensor"),
    ],
)
def test_inside_a_replica_any_strategy_shards_and_has_its_stated_collectives(model, strategy):
    """Nothing over replica in an update; a synchronisation sums each device's own shards, once."""
    program = compiled(model, strategy, "replica=2,data=2,model=2")
    inspection = inspect(program)
    assert inspection.faults == ()
    assert not any("replica" in row.axes for row in inspection.collectives)
    assert any("data" in row.axes for row in inspection.collectives)
    layout = inspection.layout
    pieces = layout.parameter_device_bytes
    pieces += sum(a.device_bytes(layout.mesh) for a in layout.state.values())
    assert {(row.kind, row.axes) for row in inspection.averaging} == {("all-reduce", ("replica",))}
    assert sum(row.bytes for row in inspection.averaging) == pieces
    assert verify(layout, hardware=cpu()).ok


def test_bytes_per_step_fall_by_how_seldom_replicas_synchronise():
    """A step's bytes are an update's, and an averaging's shared among `every` updates."""
    inspection = inspect(compiled("mlp", "local_sgd", "replica=4"))
    assert inspection.collectives == ()

    def under(strategy):
        layout = replace(inspection.layout, strategy=strategy)
        return replace(inspection, step=replace(inspection.step, layout=layout))

    for every, share in ((1, 1), (4, 4), (16, 16)):
        strategy = load_strategy("local_sgd", every=every)
        found = under(strategy)
        assert found.bytes_per_step == inspection.layout.parameter_bytes / share
    at_end = load_strategy("local_sgd", every=0)
    found = under(at_end)
    assert found.bytes_per_step == 0
    assert traffic_faults(found.layout, ())  # a synchronisation without collectives is none


def wrong(change):
    """A `make` whose averaging is `change(step, state)`."""

    def make(layout):
        step = make_step(layout)
        return replace(step, average=partial(change, step))

    return make


def forgets_one(step, state):
    """The last replica is left out of the mean."""
    kept = {p: v.at[-1].set(v[0]) for p, v in state.parameters.items()}
    return step.average(replace(state, parameters=kept))


def momentum_twice(step, state):
    """The outer momentum is taken along once more than Nesterov does."""
    after = step.average(state)
    momentum = {p: 0.9 * v for p, v in state.outer["momentum"].items()}
    further = {p: v - 0.7 * momentum[p][None] for p, v in after.parameters.items()}
    return replace(
        after, parameters=further, outer={**after.outer, "anchor": after.outer["anchor"]}
    )


def averages_optimizer_state_too(step, state):
    """The optimizer state, which is each replica's own, is averaged as well."""
    after = step.average(state)
    mixed = jax.tree.map(
        lambda v: (
            jnp.broadcast_to(v.mean(0), v.shape)
            if v.ndim > 1 and jnp.issubdtype(v.dtype, jnp.floating)
            else v
        ),
        after.optimizer,
    )
    return replace(after, optimizer=mixed)


def does_nothing(step, state):
    """Replicas never synchronise."""
    del step
    return state


MISTAKES = [
    ("local_sgd", forgets_one),
    ("local_sgd", does_nothing),
    ("local_sgd", averages_optimizer_state_too),
    ("diloco", momentum_twice),
]


@pytest.mark.parametrize(("strategy", "mistake"), MISTAKES, ids=lambda x: getattr(x, "__name__", x))
def test_a_wrong_averaging_is_caught(strategy, mistake):
    """Gradient and update are right, and the state after several synchronisations is not."""
    layout = small_layout("mlp", strategy, "replica=4")
    verdict = verify(layout, hardware=cpu(), make=wrong(mistake))
    assert not verdict.ok
    assert verdict.decisive.name.endswith("over 5 steps") or "after 5" in verdict.decisive.name
    assert "their synchronisation is not" in str(verdict.likely_mistake)


def test_rows_shared_out_otherwise_are_caught():
    """A replica that takes every fourth row, and not its run of rows, has another gradient."""

    def make(layout):
        step = make_step(layout)
        order = np.arange(layout.model.batch_size).reshape(-1, 4).T.ravel()

        def probe(state, batch):
            return step.probe(state, {name: rows[order] for name, rows in batch.items()})

        return replace(step, probe=probe)

    verdict = verify(small_layout("mlp", "local_sgd", "replica=4"), hardware=cpu(), make=make)
    assert not verdict.ok and verdict.decisive.name == "gradient"
    assert "its own rows" in str(verdict.likely_mistake)


def test_an_update_with_collectives_over_replica_is_a_fault():
    """Synchronous gradients under the name of parameter averaging: the program is the witness."""
    synchronous = small_layout("mlp", "replica", "replica=4")
    layout = replace(synchronous, strategy=load_strategy("local_sgd"))
    averaging = make_step(small_layout("mlp", "local_sgd", "replica=4"))
    step = replace(averaging, probe=lambda state, batch: _mixed(averaging, state, batch))
    program = compile_step(replace(step, layout=layout), hardware=cpu(), for_speed=False)
    assert any("an update does" in fault for fault in inspect(program).faults)


def _mixed(step, state, batch):
    gradients, model_state, metrics = step.gradients(state, batch)
    same = {p: jnp.broadcast_to(g.mean(0), g.shape) for p, g in gradients.items()}
    return step.apply(state, same, model_state, metrics["loss"]), metrics, same


def test_what_cannot_be_averaged_is_refused():
    """One place, another use of the axis, two ways to average, and an outer step without sense."""
    with pytest.raises(
        LayoutError, match="replica at each place.*mesh data=8,model=1 has one place"
    ):
        small_layout("mlp", "local_sgd", "data=8")
    with pytest.raises(LayoutError, match="trains a replica at each.*'replica' shards one"):
        load_strategy("local_sgd+replica")
    with pytest.raises(LayoutError, match="each decides how replicas average"):
        load_strategy("local_sgd+diloco")
    with pytest.raises(RequestError, match="outer_rate=0"):
        load_strategy("diloco", outer_rate=0.0)
    with pytest.raises(RequestError, match="outer_momentum=1.0"):
        load_strategy("diloco", outer_momentum=1.0)
