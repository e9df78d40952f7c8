"""Gathers of weights and of activations are told apart, in any mode, and so what is unexpected."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small import cpu

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.hlo.collectives import Collective
from jaxpar.measures.purpose import ACTIVATIONS, OPTIMIZER, UNKNOWN, WEIGHTS, kinds_of, purpose_of
from jaxpar.strategies.record import GATHER_ACTIVATIONS, GATHER_WEIGHTS

OPERATIONS = {
    "none": lambda x: x,
    "fft": lambda x: jnp.fft.fft(x).real,
    "fft of rows": lambda x: jnp.fft.fft(x, axis=0).real,
    "sort of rows": lambda x: jnp.sort(x, axis=0),
    "indexed update": lambda x: x.at[jnp.arange(x.shape[0]), jnp.argmax(x, -1)].set(0.0),
    "top_k": lambda x: jax.lax.top_k(x, 16)[0],
}


class Net(nnx.Module):
    def __init__(self, operation, rngs):
        self.up = nnx.Linear(16, 64, rngs=rngs)
        self.down = nnx.Linear(64, 16, rngs=rngs)
        self.operation = operation

    def __call__(self, x):
        y = self.operation(self.up(x))
        return self.down(jnp.pad(y, ((0, 0), (0, 64 - y.shape[1]))))


def inspected(name, strategy, mode, devices=4):
    batch = {"x": jax.ShapeDtypeStruct((16, 16), "float32")}
    model = jaxpar.model(
        lambda rngs: Net(OPERATIONS[name], rngs), lambda net, b: (net(b["x"]) ** 2).mean(), batch
    )
    asked = replace(load_strategy(strategy), whole_below=64)
    layout = jaxpar.lay_out(model, strategy=asked, mesh=jaxpar.MeshShape(data=devices))
    step = jaxpar.make_step(layout, mode=mode)
    return jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False))


FOURIER = [("fft", "fsdp", "auto"), ("fft", "zero1", "explicit")]
ON_SHARDS = (0, 12)
"""The JAX whose XLA transforms rows where they are; earlier ones gather them."""


@pytest.mark.parametrize(
    ("name", "strategy", "mode"),
    [
        *(FOURIER if jax.__version_info__ < ON_SHARDS else ()),
        ("sort of rows", "fsdp", "manual"),
        ("indexed update", "zero2", "auto"),
        ("top_k", "fsdp", "auto"),
    ],
)
def test_an_operation_that_makes_a_batch_whole_is_found_with_its_line(name, strategy, mode):
    """Though the strategy gathers over the same axis: weights, and nothing else."""
    found = inspected(name, strategy, mode)
    (fault,) = found.faults
    assert "never causes all-gather of activations over axis 'data'" in fault
    assert f"{__file__.rpartition('/')[2]}:" in fault and not found.ok
    assert any(row.purpose == ACTIVATIONS for row in found.collectives)
    record = next(r for r in found.record()["collectives"] if r["of"] == "activations")
    assert record["kind"] == "all-gather" and record["axes"] == ["data"]


@pytest.mark.parametrize(
    ("name", "strategy", "mode"),
    [
        ("none", "fsdp", "auto"),
        ("none", "fsdp", "explicit"),
        ("none", "zero1", "auto"),
        ("fft", "fsdp", "manual"),
    ],
)
def test_gathers_of_weights_are_expected(name, strategy, mode):
    """And an operation that is done a shard at a time has no other."""
    found = inspected(name, strategy, mode)
    assert found.faults == ()
    assert not any(row.purpose == ACTIVATIONS for row in found.collectives)
    assert any(row.kind == "all-gather" for row in found.collectives)


def test_a_transform_along_a_sharded_dim_is_gathered_before_xla_ends_the_process():
    """Two rows on each of eight devices are none for each of eight: XLA's partitioner aborts."""
    (fault,) = inspected("fft of rows", "fsdp", "auto", devices=8).faults
    assert "never causes all-gather of activations over axis 'data'" in fault


def called(op_name, kind="all-gather", borrowed=False):
    return Collective(
        name="c", kind=kind, groups=((0, 1),), pairs=(), bytes_each=4, executions=1, exact=True,
        is_async=False, op_name=op_name, frames=(), borrowed=borrowed, operands=(),
        computation="main",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op_name", "purpose"),
    [
        ("jit(update)/(jvp()/reshard:transpose(jvp())/closed_call/bsd,df->bsf/reshard)", UNKNOWN),
        ("jit(update)/(jvp()/reshard:jvp()/top_k)", ACTIVATIONS),
        ("jit(update)/jvp(weight(up.kernel))/sharding_constraint", WEIGHTS),
        ("jit(update)/(jvp(weight(a))/all_gather:jvp(weight(b))/all_gather)", WEIGHTS),
        ("jit(update)/(jvp(weight(a))/all_gather:jvp()/sort)", ACTIVATIONS),
        ("jit(update)/transpose(jvp())/fft", ACTIVATIONS),
        ("jit(update)/shard_map/while/body/all_gather", ACTIVATIONS),
        ("jit(update)/jvp()/reshard", UNKNOWN),
        ("jit(update)/sharding_constraint", UNKNOWN),
        ("jit(update)/shard_map/sharding_constraint", UNKNOWN),
        ("jit(update)/while/body/dot_general", OPTIMIZER),
        ("", UNKNOWN),
    ],
)
def test_a_gathers_name_tells_what_it_gathers(op_name, purpose):
    """As a step, an optimizer and XLA's combiner leave it in the program."""
    assert purpose_of(called(op_name)) == purpose
    assert purpose_of(called(op_name, borrowed=True)) in (purpose, UNKNOWN)


def test_what_an_optimizer_asks_for_is_no_strategys_doing():
    """Muon's products of a sharded matrix: neither of weights nor of activations."""
    for kind in ("all-gather", "all-to-all", "collective-permute"):
        assert (
            kinds_of(kind, purpose_of(called("jit(update)/while/body/dot_general", kind))) == set()
        )
    assert kinds_of("all-gather", UNKNOWN) == {GATHER_WEIGHTS, GATHER_ACTIVATIONS}
    assert purpose_of(called("jit(update)/jvp(weight(a))/x", "reduce-scatter")) == UNKNOWN


class Named(nnx.Module):
    """Layers whose names have a meaning to compilers."""

    KEYS = ("a-b", "c d:(e)", "é/x")

    def __init__(self, rngs):
        self.layers = nnx.Dict({key: nnx.Linear(64, 64, rngs=rngs) for key in self.KEYS})

    def __call__(self, x):
        for layer in self.layers.values():
            x = jnp.tanh(layer(x))
        return x


class Attention(nnx.Module):
    """A matrix that tensor parallelism stores in three pieces."""

    def __init__(self, rngs):
        self.qkv, self.out = nnx.Linear(64, 192, rngs=rngs), nnx.Linear(64, 64, rngs=rngs)

    def __call__(self, x):
        q, k, v = (part.reshape(-1, 4, 4, 16) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


@pytest.mark.parametrize("mode", ["auto", "manual"])
@pytest.mark.parametrize(
    ("module", "weights"),
    [
        (Named, {f"layers/{key}/kernel" for key in Named.KEYS}),
        (Attention, {"qkv/kernel", "out/kernel"}),
    ],
)
def test_a_gather_is_of_the_weight_as_its_author_calls_it(module, weights, mode):
    """Whatever the name has in it, and however the weight is stored."""
    batch = {"x": jax.ShapeDtypeStruct((16, 4, 64), "float32")}
    model = jaxpar.model(module, lambda net, b: (net(b["x"]) ** 2).mean(), batch)
    asked = replace(load_strategy("fsdp+tensor"), whole_below=64)
    layout = jaxpar.lay_out(model, strategy=asked, mesh="data=2,model=2")
    assert ("qkv/kernel/0" in layout.parameters) == (module is Attention)
    step = jaxpar.make_step(layout, mode=mode)
    inspection = jaxpar.inspect(jaxpar.compile_step(step, hardware=cpu(), for_speed=False))
    assert inspection.ok, inspection.faults
    (row,) = [row for row in inspection.collectives if row.title == "all-gather of weights"]
    told = {source.removeprefix("weight ") for source in row.sources}
    assert weights <= told and not any("/0" in name for name in told), told
