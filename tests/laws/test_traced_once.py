"""A loss is traced once, and what is found out of it depends on nothing that came before.

The same program and the same findings in a fresh process and after any other layout and hardware.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from plain.catalogue import factories
from small import cpu, kinds_of_model, mesh_for, small_layout, small_model

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.core import hooks
from jaxpar.core.mesh import MeshShape
from jaxpar.inference.traced import traced_loss

pytestmark = pytest.mark.usefixtures("drawn_once")

PLAIN = ("decoder:in_nnx", "resnet:in_linen", "scanned:in_nnx")
STRATEGIES = ("hybrid", "fsdp+tensor", "data")
MODES = ("auto", "explicit", "manual")


def cases() -> list[tuple[str, str, str]]:
    """Model, strategy and mode of what is compared, in one order."""
    turns = [(s, m) for s in STRATEGIES for m in MODES]
    models = (*kinds_of_model(), *PLAIN)
    return [(name, *turns[(k + j) % 9]) for k, name in enumerate(models) for j in (0, 4)]


@cache
def plain_model(name: str) -> jaxpar.Model:
    return factories()[name]()


def layout_of(name: str, strategy: str):
    if ":" not in name:
        return small_layout(name, strategy, mesh_for(strategy))
    options = {"whole_below": 64} if "fsdp" in strategy else {}
    chosen = load_strategy(strategy, **options)
    return jaxpar.lay_out(plain_model(name), strategy=chosen, mesh=MeshShape(data=2, model=2))


def findings(name: str, strategy: str, mode: str) -> list:
    """The lowered program, and what was found while it was made."""
    step = jaxpar.make_step(layout_of(name, strategy), mode=mode)
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    text = program.lowered.as_text()
    unmet = [[list(u.shape), u.dim, list(u.axes)] for u in step.traced.unmet]
    islands = sorted({(i.primitive, i.why) for i in step.traced.islands})
    return [sha256(text.encode()).hexdigest(), unmet, [list(i) for i in islands]]


FRESH = """
import json, sys
sys.path.insert(0, sys.argv[1])
import conftest
from laws import test_traced_once as law
found = {"|".join(case): law.findings(*case) for case in reversed(law.cases())}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def in_a_fresh_process():
    """The findings of another process, which comes to the cases from the other end."""
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", FRESH, tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tests)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", cases(), ids="|".join)
def test_the_program_is_that_of_a_fresh_process(case, in_a_fresh_process):
    """Whatever was laid out before, here and there in another order, and for a GPU beside it."""
    assert findings(*case) == in_a_fresh_process["|".join(case)]


def test_a_loss_is_called_once_for_each_number_of_rows():
    """Every layout, mode and program of one model reads the same jaxpr."""
    calls = []

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(8, 32, rngs=rngs)
            self.down = nnx.Linear(32, 4, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.up(x)))

    def loss(net, batch):
        calls.append(batch["x"].shape[0])
        return ((net(batch["x"]) - batch["y"]) ** 2).mean()

    rows = np.random.default_rng(0)
    batch = {"x": rows.normal(size=(16, 8)), "y": rows.normal(size=(16, 4))}
    model = jaxpar.model(Net, loss, batch)
    for strategy in ("data", "hybrid", "tensor"):
        layout = jaxpar.lay_out(
            model, strategy=load_strategy(strategy), mesh=MeshShape(data=4, model=2)
        )
        for mode in MODES:
            step = jaxpar.make_step(layout, mode=mode)
            jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False))
    assert calls == [16]
    jaxpar.make_step(layout, microbatches=2).traced  # noqa: B018
    jaxpar.make_step(layout, microbatches=2, mode="manual").traced  # noqa: B018
    assert calls == [16, 8]


def test_one_step_compiled_twice_keeps_its_findings():
    """Islands and constraints that cannot hold are the step's, and not of one compilation."""
    layout = layout_of("decoder:in_nnx", "fsdp+tensor")
    step = jaxpar.make_step(layout, mode="explicit")
    found = [
        jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False)).islands
        for _ in range(2)
    ]
    assert found[0] == found[1] and len(found[0]) > 0


@jax.jit
def hidden(x, w):
    """A person's own jit, whose trace JAX keeps whatever mesh comes next."""
    return hooks.named(jax.nn.relu(x @ w), ("batch", "hidden"))


class Two(nnx.Module):
    def __init__(self, rngs):
        def dims(*names):
            return nnx.with_partitioning(nnx.initializers.lecun_normal(), names)

        made = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.up = made(16, 64, kernel_init=dims("pixels", "hidden"))
        self.down = made(64, 4, kernel_init=dims("hidden", "classes"))

    def __call__(self, x):
        return self.down(hidden(x, self.up.kernel[...]))


def test_a_constraint_in_a_jit_is_not_that_of_the_first_mesh():
    """A second mesh in one process: all-reduces alone, as in a fresh one."""

    def loss(module, batch, *, key=None):
        error = ((module(batch["x"]) - batch["y"]) ** 2).mean(axis=-1)
        return jaxpar.weighted_mean(error, batch["weight"]), {}

    field = jaxpar.Field
    model = jaxpar.Model(
        name="two",
        build=Two,
        loss=loss,
        batch={
            "x": field((32, 16), "float32", ("batch", "pixels")),
            "y": field((32, 4), "float32", ("batch", "classes")),
            "weight": field((32,), "float32", ("batch",)),
        },
        roles={"hidden": "inner"},
    )
    for mesh in (MeshShape(data=4, model=2), MeshShape(data=2, model=4)):
        layout = jaxpar.lay_out(model, strategy=load_strategy("hybrid"), mesh=mesh)
        program = jaxpar.compile_step(jaxpar.make_step(layout), hardware=cpu(), for_speed=False)
        assert {row.kind for row in jaxpar.inspect(program).collectives} == {"all-reduce"}


class Gated(nnx.Module):
    def __init__(self, rngs):
        made = partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.gate, self.up, self.down = made(64, 256), made(64, 256), made(256, 64)

    def __call__(self, x):
        return x + self.down(nnx.silu(self.gate(x)) * self.up(x))


class Stack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=6)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return Gated(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return layer(x)

        return run(x, self.layers)


def gathered(layout, mode: str) -> Counter:
    """How many instructions of the program stand in the gather of each weight."""
    program = jaxpar.compile_step(
        jaxpar.make_step(layout, mode=mode), hardware=cpu(), for_speed=False
    )
    return Counter(re.findall(r"weight\(([\w.]+)\)", program.text))


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_each_gather_says_whose_it_is(mode):
    """Gate and up have one shape, and are two weights."""
    x = jax.ShapeDtypeStruct((32, 64), "float32")
    model = jaxpar.model(
        Stack, lambda net, b: ((net(b["x"]) - b["y"]) ** 2).mean(), {"x": x, "y": x}
    )
    layout = jaxpar.lay_out(
        model, strategy=load_strategy("fsdp", whole_below=0), mesh=MeshShape(data=4)
    )
    found = gathered(layout, mode)
    assert {f"layers.{name}.kernel" for name in ("gate", "up", "down")} == set(found)


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_each_gather_of_an_annotated_stack_says_whose_it_is(mode):
    """Queries and output have one shape here, and the norms are too small to be sharded."""
    found = gathered(small_layout("transformer", "fsdp", "data=4,model=2"), mode)
    blocks = {f"blocks.{name}" for name in ("qk", "value", "out", "up", "down")}
    assert {*blocks, "embedding", "head"} == set(found)


def test_a_fault_of_our_own_is_no_island(monkeypatch):
    """Explicit mode lets every exception through but JAX's own of sharding in types."""
    monkeypatch.setattr("jaxpar.step.modes.explicit.as_it_is", _raising)
    step = jaxpar.make_step(layout_of("mlp", "data"), mode="explicit")
    with pytest.raises(ValueError, match="a fault of our own"):
        step.traced  # noqa: B018


def _raising(eqn, operands):
    raise ValueError("a fault of our own")


def test_a_convolution_is_typed():
    """JAX takes how its result is sharded, so that it is no island."""
    step = jaxpar.make_step(layout_of("resnet:in_linen", "data"), mode="explicit")
    assert not [i for i in step.traced.islands if i.primitive.startswith("conv")]


def test_a_loss_first_asked_for_inside_a_shard_map_knows_no_mesh():
    """What is kept of it is evaluated under any other mesh later."""
    model, found = small_model("mlp").with_batch_size(3), []
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def here(x):
        found.append(traced_loss(replace(model, traced={})))
        return x

    jax.eval_shape(jax.shard_map(here, mesh=mesh, in_specs=jax.P(), out_specs=jax.P()), 1.0)
    avals = [v.aval for eqn in found[0].closed.jaxpr.eqns for v in eqn.outvars]
    assert avals and all(aval.sharding.mesh.empty for aval in avals)
