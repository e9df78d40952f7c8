"""Faults planted in models are pointed out by the line on which they stand, and nothing else is."""

from inspect import getsourcelines
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from jax.sharding import PartitionSpec as P

import jaxpar
from jaxpar import hooks
from jaxpar.hlo.device_numbers import number_on_each, own_shard
from jaxpar.hlo.parse import parse

MESH = "data=4,model=2"
ROWS = {"x": jax.ShapeDtypeStruct((16, 128), "float32")}


def program_of(model, **how):
    """A model under `hybrid`, compiled for simulated devices."""
    step = jaxpar.make_step(jaxpar.lay_out(model, strategy="hybrid", mesh=MESH), **how)
    return jaxpar.compile_step(step, hardware="cpu", for_speed=False)


def at(marked: type, mark: str) -> str:
    """The line of this file on which a mark stands, within what is given, as "file:line"."""
    lines, first = getsourcelines(marked)
    (number,) = [first + n for n, line in enumerate(lines) if f"# {mark}" in line]
    return f"{Path(__file__)}:{number}"


def square(net, batch):
    return jnp.mean(net(batch["x"]) ** 2)


class Constrained(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(128, 256, rngs=rngs)
        self.down = nnx.Linear(256, 128, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.up(x))
        h = jax.lax.with_sharding_constraint(h, P("data", None))  # replicates
        return self.down(h)


class Kept(Constrained):
    def __call__(self, x):
        h = nnx.relu(self.up(x))
        return self.down(jax.lax.with_sharding_constraint(h, P("data", "tp")))


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        h = linen.relu(linen.Dense(256)(x))
        h = jax.lax.with_sharding_constraint(h, P("data", None))  # replicates
        return linen.Dense(128)(h)


@pytest.mark.parametrize(("module", "where"), [(Constrained, Constrained), (Dense(), Dense)])
def test_a_constraint_that_would_replicate_is_told_by_its_line(module, where):
    """Of a plain model, whose constraints are set aside: it costs nothing here, and is no error."""
    (found,) = jaxpar.lint(program_of(jaxpar.model(module, square, ROWS)))
    assert (found.kind, found.is_error, found.bytes) == ("constraint", False, 0)
    assert found.source == at(where, "replicates") and "dim `ffn` over model" in found.says


def test_a_constraint_that_shards_is_no_finding():
    """Whatever its author calls the axis."""
    assert jaxpar.lint(program_of(jaxpar.model(Kept, square, ROWS))) == ()


# --- models that name their dims ------------------------------------------------------------------


class Named(nnx.Module):
    def __init__(self, rngs):
        def of(*dims):
            return nnx.with_partitioning(nnx.initializers.lecun_normal(), dims)

        self.up = nnx.Linear(128, 256, use_bias=False, kernel_init=of("in", "ffn"), rngs=rngs)
        self.down = nnx.Linear(256, 128, use_bias=False, kernel_init=of("ffn", "out"), rngs=rngs)

    def __call__(self, x):
        return self.down(hooks.named(nnx.relu(self.up(x)), ("batch", "ffn")))


class Misnamed(Named):
    def __call__(self, x):
        return self.down(
            hooks.named(nnx.relu(self.up(x)), ("batch", "other"))  # replicates
        )


class Whole(Named):
    def __init__(self, rngs):
        super().__init__(rngs)
        start = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("a", "b"))
        self.side = nnx.Linear(128, 256, use_bias=False, kernel_init=start, rngs=rngs)  # whole

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)) + self.side(x))


class ByHand(Named):
    """A pair of matrices per shard, its sum over `model` left out."""

    def __call__(self, x):
        def body(x, up, down):
            y = nnx.relu(x @ up) @ down
            return jnp.tanh(self.summed(y))  # unsummed

        return jax.shard_map(
            body,
            mesh=jaxpar.MeshShape.parse(MESH).abstract,
            in_specs=(P("data", None), P(None, "model"), P("model", None)),
            out_specs=P("data", None),
            check_vma=False,
        )(x, self.up.kernel[...], self.down.kernel[...])

    def summed(self, y):
        return y


class Right(ByHand):
    def summed(self, y):
        return jax.lax.psum(y, "model")


def loss(net, batch, *, key=None):
    """The mean square, as a loss that is written for jaxpar gives it."""
    error = jnp.mean(net(batch["x"]) ** 2, axis=-1)
    return jaxpar.weighted_mean(error, jnp.ones_like(error)), {}


def named_model(build):
    """A model whose author names the dims."""
    batch = {"x": jaxpar.Field((16, 128), "float32", ("batch", "in"))}
    return jaxpar.Model(build.__name__, build, loss, batch, roles={"ffn": "inner"})


@pytest.mark.parametrize("build", [Named, Right])
def test_a_model_without_a_fault_has_no_finding(build):
    """Nor does the same pair written per shard, its sum in place."""
    assert jaxpar.lint(program_of(named_model(build))) == ()


def test_a_name_that_replicates_is_an_error_by_its_line():
    """With the bytes that every device then has of the array, once forward."""
    found = jaxpar.lint(program_of(named_model(Misnamed)))
    (one,) = [one for one in found if one.is_error]
    assert one.kind == "constraint" and one.source == at(Misnamed, "replicates")
    assert "dim `ffn` over model" in one.says and one.bytes == 16 // 4 * 256 * 4
    assert one.module == "Misnamed.__call__"


def test_a_parameter_that_is_left_replicated_is_told_by_the_line_that_declares_it():
    """With its bytes on each device, and which of its dims has no role."""
    (found,) = jaxpar.lint(program_of(named_model(Whole)))
    assert (found.kind, found.source) == ("parameter", at(Whole, "whole"))
    assert found.bytes == 128 * 256 * 4 and "`a`, `b`" in found.says and not found.is_error


def test_weights_without_a_role_to_shard_are_told_although_nothing_is_sharded():
    """The strategy would have sharded them over `model`, whose devices now do the same work."""
    net = jaxpar.model(Constrained, square, ROWS, roles={"ffn": "feature"})
    kinds = {(one.kind, one.module) for one in jaxpar.lint(program_of(net))}
    assert {("parameter", "up"), ("parameter", "down")} <= kinds


def test_a_sum_that_a_loss_leaves_out_is_an_error_by_its_line():
    """Found in the compiled program, without running it; the inspection is not ok."""
    program = program_of(named_model(ByHand))
    (found,) = jaxpar.lint(program)
    assert (found.kind, found.is_error) == ("partial sum", True)
    assert found.source == at(ByHand, "unsummed") and "before it is reduced" in found.says
    assert "--lint warn" in found.repair and found.module.endswith("body")
    inspection = jaxpar.inspect(program)
    assert inspection.errors == (found,) and not inspection.ok
    (record,) = inspection.record()["findings"]
    assert {"kind", "sentence", "source", "module", "bytes"} <= record.keys()


# --- numbers that tell devices apart --------------------------------------------------------------

TEXT = """HloModule m, num_partitions=8

ENTRY %main (p: f32[16]) -> f32[8] {
  %p = f32[16] parameter(0)
  %id = u32[] partition-id()
  %one = u32[] constant(1)
  %model = u32[] and(%id, %one)
  %size = u32[] constant(8)
  %start = u32[] multiply(%model, %size)
  %table = s32[8] constant({0, 0, 0, 0, 1, 1, 1, 1})
  %row = s32[1] dynamic-slice(%table, %id), dynamic_slice_sizes={1}
  %below = u32[] subtract(%model, %one)
  ROOT %own = f32[8] dynamic-slice(%p, %start), dynamic_slice_sizes={8}
}
"""


def test_a_number_is_known_on_each_device_or_not_at_all():
    """By its arithmetic; what would wrap around is not followed."""
    known = {}
    for i in parse(TEXT).computations["main"].instructions:
        known[i.name] = number_on_each(i, [known[name] for name in i.operands], 8)
    assert known["start"].tolist() == [0, 8] * 4 and known["row"].tolist() == [0] * 4 + [1] * 4
    assert known["below"] is None and known["p"] is None and known["own"] is None
    sizes = {"data": 4, "model": 2}
    assert own_shard(known["start"], 8, 16, sizes) == {"model"}
    assert own_shard(known["start"], 8, 32, sizes) is None  # half of it only
    assert own_shard(known["start"], 4, 16, sizes) is None  # with gaps
    assert own_shard(known["one"], 8, 16, sizes) is None  # all take the same
