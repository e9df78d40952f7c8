"""State that every device has whole is listed with its bytes, and is a finding where unasked."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from small import cpu, small_layout

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.measures.lint import lint
from jaxpar.measures.replicated import MODEL, OPTIMIZER, replicated
from jaxpar.measures.residual import residual_of
from jaxpar.step.make_step import make_step

FLOAT = 4


class Net(nnx.Module):
    """Two matrices, and a book of vectors that is no parameter."""

    def __init__(self, rngs, book=0):
        self.up = nnx.Linear(64, 128, rngs=rngs)
        self.down = nnx.Linear(128, 64, rngs=rngs)
        if book:
            self.book = nnx.Variable(jnp.zeros((book, 96)))

    def __call__(self, x):
        y = self.down(nnx.relu(self.up(x)))
        return y + jnp.mean(self.book[...]) if hasattr(self, "book") else y


def step_of(strategy, optimizer=None, book=0, mesh="data=4"):
    batch = {"x": jax.ShapeDtypeStruct((16, 64), "float32")}
    model = jaxpar.model(
        lambda rngs: Net(rngs, book), lambda net, b: (net(b["x"]) ** 2).mean(), batch
    )
    asked = load_strategy(strategy)
    asked = replace(asked, whole_below=min(asked.whole_below, 64))
    layout = jaxpar.lay_out(model, strategy=asked, mesh=jaxpar.MeshShape.parse(mesh))
    return make_step(layout, optimizer=optimizer)


def whole(parameters):
    """All parameters as one vector, as some optimizers keep them."""
    return jnp.concatenate([x.ravel() for x in jax.tree.leaves(parameters)])


FLAT = optax.GradientTransformation(
    lambda params: {"vector": whole(params), "count": jnp.zeros((), int)},
    lambda updates, state, params=None: (updates, state),
)
"""An optimizer whose state is one vector, which has no dim of a parameter."""


def found_in(step):
    program = jaxpar.compile_step(step, hardware=cpu(), for_speed=False)
    return [finding for finding in lint(program) if finding.kind == "replicated"]


@pytest.mark.parametrize("strategy", ["zero1", "fsdp"])
def test_optimizer_state_of_another_shape_is_listed_and_found(strategy):
    """With its bytes on each device; the same strategy shards what mirrors a parameter."""
    step = step_of(strategy, optax.chain(FLAT, optax.adamw(1e-3)))
    elements = sum(a.size for a in step.layout.parameters.values())
    vector, *others = [one for one in replicated(step) if one.group == OPTIMIZER]
    assert (vector.path, vector.bytes) == ("optimizer/0/vector", FLOAT * elements)
    assert vector.axes == ("data",) and vector.is_unasked and not others
    (finding,) = found_in(step)
    assert finding.where == OPTIMIZER and f"{vector.bytes:,} bytes per device" in finding.says
    inspection = jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False))
    assert inspection.record()["replicated"][0]["path"] == vector.path
    assert not inspection.ok


def test_model_state_as_large_as_weights_is_found_where_weights_are_sharded():
    """Under fsdp; zero1 was not asked to shard what a model has."""
    (finding,) = found_in(step_of("fsdp", book=200))
    assert finding.where == MODEL and f"{200 * 96 * FLOAT:,} bytes" in finding.says
    assert found_in(step_of("zero1", book=200)) == []
    assert found_in(step_of("fsdp", book=0)) == []


@pytest.mark.parametrize("strategy", ["data", "zero2", "fsdp", "tensor"])
def test_state_that_mirrors_parameters_is_no_finding(strategy):
    """What a layout leaves replicated is in its notes; of small arrays there are no findings."""
    step = step_of(strategy, optax.adamw(1e-3), mesh="data=2,model=2")
    assert found_in(step) == []
    assert all(not one.is_unasked for one in replicated(step))
    if strategy == "data":
        assert replicated(step) == ()


def test_replicas_of_local_sgd_list_what_each_has_whole():
    """Along one more dim: the mirror of a parameter is still known as one."""
    step = make_step(small_layout("mlp", "local_sgd+fsdp", "replica=2,data=2", width=64))
    listed = replicated(step)
    assert listed and all(not one.is_unasked for one in listed)


def test_a_residual_that_stays_whole_is_told_with_its_bytes_and_what_shards_it():
    """Of layers that are kept: their number times rows, positions and width, on each device."""
    fields = {"sequence": 4096, "layers": 24, "width": 1024, "ffn": 64}
    layout = small_layout("transformer", "fsdp+tensor", "data=2,model=2", **fields)
    found = residual_of(make_step(layout))
    assert found is not None and found.axes == ("model",) and found.layers == 24
    assert found.bytes == 24 * (16 // 2) * 4096 * 1024 * FLOAT
    assert "--strategy fsdp+sequence shards" in str(found)
    layout = small_layout("transformer", "fsdp+sequence", "data=2,model=2", **fields)
    assert residual_of(make_step(layout)) is None
    small = small_layout("transformer", "fsdp+tensor", "data=2,model=2")
    assert residual_of(make_step(small)) is None
