"""Lint: each way in which a program is not what was asked is seen on a program that is so."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import NamedSharding, PartitionSpec
from small import small_layout, small_model

import jaxpar
from jaxpar.core import hooks
from jaxpar.measures.finding import Finding
from jaxpar.measures.lint import lint
from jaxpar.program.warnings import read_warnings

CPU = jaxpar.HARDWARE.load("cpu")()
MESH = jaxpar.MeshShape(data=4, model=2)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(16, 32, rngs=rngs)
        self.down = nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def program_of(loss, strategy="hybrid", batch=None, **how):
    batch = batch or {"x": jax.ShapeDtypeStruct((16, 16), "float32")}
    layout = jaxpar.lay_out(
        jaxpar.model(Net, loss, batch), strategy=jaxpar.STRATEGIES.load(strategy)(), mesh=MESH
    )
    return jaxpar.compile_step(jaxpar.make_step(layout, **how), hardware=CPU, for_speed=False)


def plain(net, batch):
    return jnp.mean(net(batch["x"]) ** 2)


@pytest.mark.parametrize("mode", ["auto", "explicit", "manual"])
@pytest.mark.parametrize("strategy", ["hybrid", "fsdp"])
def test_an_honest_program_has_no_findings(mode, strategy):
    """Of a plain model, in each mode."""
    assert lint(program_of(plain, strategy, mode=mode)) == ()


def across(module, batch, *, key=None):
    """A loss that lays an activation out in two ways that XLA knows no way between.

    One written for jaxpar: the constraints of any other are set aside.
    """
    x = jnp.sin(module(batch["x"])).reshape(16, 8, 2)
    x = jax.lax.with_sharding_constraint(
        x, NamedSharding(MESH.abstract, PartitionSpec("data", None, "model"))
    )
    x = jnp.cos(x)
    x = jax.lax.with_sharding_constraint(
        x, NamedSharding(MESH.abstract, PartitionSpec(None, ("data", "model"), None))
    )
    return jaxpar.weighted_mean(jnp.sin(x), jnp.ones_like(x)), {}


def program_across():
    """Its program."""
    batch = {"x": jax.ShapeDtypeStruct((16, 16), "float32")}
    model = replace(jaxpar.model(Net, plain, batch), loss=across, annotate=None)
    layout = jaxpar.lay_out(model, strategy="hybrid", mesh=MESH)
    return jaxpar.compile_step(jaxpar.make_step(layout), hardware=CPU, for_speed=False)


@pytest.fixture
def compiled_in(tmp_path):
    """A folder of its own for what JAX keeps of compiled programs."""
    chosen = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    for name, value in chosen.items():
        jax.config.update(name, value)
    reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def test_an_array_that_xla_replicates_to_move_it_is_found_with_its_line():
    """XLA says so on standard error, in C++; the finding names the person's own line."""
    found = [f for f in lint(program_across()) if f.kind == "rematerialization"]
    assert found and all("replicate it on every device" in f.says for f in found)
    assert any("test_lint.py" in f.where for f in found)


def test_a_warning_is_remembered_with_the_program(compiled_in):
    """A program from JAX's cache is not compiled, so XLA has nothing to say; the file has."""
    first = program_across().made.warnings
    assert first and list(compiled_in.glob("warnings/*.json"))
    assert any("test_lint.py" in c.source for c in first)
    jax.clear_caches()
    assert program_across().made.warnings == first


def test_warnings_are_read_in_both_of_xlas_wordings():
    """And nothing else is taken for one."""
    now = (
        "W1 spmd_partitioner.cc:656] [SPMD] Involuntary full rematerialization. The compiler "
        "cannot go from sharding {devices=[2,1,4]<=[8]} to {devices=[1,8,1]<=[8]} efficiently for "
        'HLO operation %a.1 = f32[8,16,4]{2,1,0} copy(%b), metadata={op_name="jit(f)/sin" '
        "stack_frame_id=7}. As the last resort"
    )
    before = now.replace("cannot go", "was not able to go").replace("efficiently", "without")
    for text in (now, before):
        (found,) = read_warnings(f"other\n{text}\nmore")
        assert (found.array, found.op_name, found.frame_id) == ("f32[8,16,4]", "jit(f)/sin", 7)
    assert read_warnings("W1 something else entirely") == ()


def test_a_state_that_cannot_be_written_over_is_found():
    """An update whose new state has another dtype leaves the old one's buffers unused."""
    layout = small_layout("mlp", "hybrid", "data=4,model=2")
    step = jaxpar.make_step(layout, optimizer=optax.sgd(0.1))

    def widening(state, batch):
        new, *more = step.probe(state, batch)
        halves = jax.tree.map(lambda x: x.astype("bfloat16"), new.parameters)
        return replace(new, parameters=halves), *more

    program = jaxpar.compile_step(replace(step, probe=widening), hardware=CPU, for_speed=False)
    (found,) = lint(program)
    assert found.kind == "donation" and "used again" in found.says


def test_an_array_that_comes_back_otherwise_than_asked_is_found(monkeypatch):
    """The compiled program's own word is compared with the layout's, leaf by leaf."""
    program = program_of(plain)
    assert lint(program) == ()
    asked = program.state_shardings
    wrong = replace(
        asked,
        parameters={
            **asked.parameters,
            "up/kernel": NamedSharding(program.mesh, PartitionSpec("model", None)),
        },
    )
    monkeypatch.setattr(type(program), "state_shardings", property(lambda self: wrong))
    found = [f for f in lint(program) if f.kind == "sharding"]
    assert {f.where for f in found} == {"0/parameters/up/kernel", "parameters/up/kernel"}
    assert all("should be sharded as P('model', None)" in f.says for f in found)


def test_a_named_activation_that_does_not_divide_is_found():
    """JAX leaves such a dim replicated without a word; the step says so."""

    model = small_model("mlp")

    def loss(module, batch, *, key=None):
        found = hooks.named(batch["weight"][:6], ("batch",))
        mean, metrics = model.loss(module, batch, key=key)
        return replace(mean, total=mean.total + 0 * found.sum()), metrics

    layout = jaxpar.lay_out(
        replace(model, loss=loss).with_batch_size(16),
        strategy=jaxpar.STRATEGIES.load("hybrid")(),
        mesh=MESH,
    )
    (unmet,) = jaxpar.make_step(layout).traced.unmet
    assert (unmet.shape, unmet.dim, unmet.axes) == ((6,), 0, ("data",))
    assert "test_lint.py" in unmet.source


def test_the_record_holds_what_lint_finds_and_warn_makes_it_a_warning():
    """As `lint` in the record; strict, it makes the inspection fail."""
    layout = small_layout("mlp", "hybrid", "data=4,model=2")
    step = jaxpar.make_step(layout, optimizer=optax.sgd(0.1))
    program = jaxpar.compile_step(step, hardware=CPU, for_speed=False)
    honest = jaxpar.inspect(program)
    assert honest.ok and honest.record()["findings"] == []
    finding = Finding("donation", "the state", "is not reused", "keep it")
    for is_strict in (True, False):
        found = replace(honest, lint=(finding,), is_strict=is_strict)
        assert found.ok is not is_strict
        assert json.loads(json.dumps(found.record()))["findings"][0]["repair"] == "keep it"


def test_state_that_a_step_does_not_read_is_passed_over():
    """It is no argument of the compiled program, and those after it keep their places."""

    class Writing(Net):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.last = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            y = super().__call__(x)
            self.last[...] = jax.lax.stop_gradient(jnp.max(y))
            return y

    layout = jaxpar.lay_out(
        jaxpar.model(Writing, plain, {"x": jax.ShapeDtypeStruct((16, 16), "float32")}),
        strategy=jaxpar.STRATEGIES.load("hybrid")(),
        mesh=MESH,
    )
    program = jaxpar.compile_step(jaxpar.make_step(layout), hardware=CPU, for_speed=False)
    assert not [f for f in lint(program) if f.kind == "sharding"]
