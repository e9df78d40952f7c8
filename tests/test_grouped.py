"""Channels of grouped convolutions, and blocks of a width, are dims like others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpar
from jaxpar.case import load_strategy

pytestmark = pytest.mark.usefixtures("ranks_promoted", "drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
IMAGES = {"x": np.random.default_rng(0).standard_normal((8, 5, 5, 8)).astype("float32")}
ROWS = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype("float32")}


def loss(net, batch):
    return jnp.mean(net(batch["x"]) ** 2)


class Bottleneck(nnx.Module):
    """1x1 up, 3x3 in groups, 1x1 down (MobileNet, ResNeXt), beside a residual."""

    def __init__(self, rngs, groups, out):
        self.up = nnx.Conv(8, 32, (1, 1), rngs=rngs)
        self.each = nnx.Conv(32, out, (3, 3), feature_group_count=groups, rngs=rngs)
        self.down = nnx.Conv(out, 8, (1, 1), rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.each(nnx.relu(self.up(x)))))


class Depthwise(nnx.Module):
    """A residual that goes through a depthwise convolution (ConvMixer)."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(8, 32, (1, 1), rngs=rngs)
        self.each = nnx.Conv(32, 32, (3, 3), feature_group_count=32, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        return x + self.each(x)


class Scaled(nnx.Module):
    """A feed-forward part whose width is scaled, or mixed block by block."""

    def __init__(self, rngs, mix):
        self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(32))
        self.blocks = nnx.Param(jax.random.normal(rngs.params(), (8, 4, 4)))
        self.mix = mix

    def __call__(self, x):
        return self.down(nnx.relu(self.mix(self, self.up(x))))


def blockwise(net, h):
    return jnp.einsum("bki,kij->bkj", h.reshape(-1, 8, 4), net.blocks[...]).reshape(-1, 32)


MIXES = {
    "times": lambda net, h: h * net.scale[...],
    "einsum": lambda net, h: jnp.einsum("h,bh->bh", net.scale[...], h),
    "blocks": blockwise,
}
GROUPS = {"depthwise": (32, 32), "multiplied": (32, 64), "grouped": (4, 64)}


def laid_out(module, batch, strategy="tensor", mesh="model=4"):
    parsed = jaxpar.MeshShape.parse(mesh)
    model = jaxpar.model(module, loss, batch)
    return jaxpar.lay_out(model, strategy=load_strategy(strategy), mesh=parsed)


@pytest.mark.parametrize(
    ("groups", "mode"),
    [("depthwise", "auto"), ("multiplied", "explicit"), ("grouped", "manual"), ("grouped", "auto")],
)
def test_the_channels_of_a_grouped_convolution_are_sharded(groups, mode):
    """As an MLP's width: made by columns, kept through the groups, used up by rows; one sum."""
    layout = laid_out(lambda rngs: Bottleneck(rngs, *GROUPS[groups]), IMAGES)
    specs = {path: tuple(a.used) for path, a in layout.parameters.items() if "kernel" in path}
    assert specs == {
        "up/kernel": (None, None, None, "model"),
        "each/kernel": (None, None, None, "model"),
        "down/kernel": (None, None, "model", None),
    }
    make = partial(jaxpar.make_step, mode=mode)
    assert jaxpar.inspect(jaxpar.compile_step(make(layout), hardware=CPU, for_speed=False)).ok
    verdict = jaxpar.verify(layout, hardware=CPU, make=make, steps=1)
    assert verdict.ok and verdict.dtype == "float64", verdict.decisive


def test_rows_and_groups_may_be_sharded_at_once():
    layout = laid_out(
        lambda rngs: Bottleneck(rngs, *GROUPS["grouped"]), IMAGES, "hybrid", "data=2,model=4"
    )
    for mode in ("auto", "explicit"):
        make = partial(jaxpar.make_step, mode=mode)
        assert jaxpar.verify(layout, hardware=CPU, make=make, steps=1).ok, mode


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_width_that_is_scaled_or_mixed_in_blocks_is_an_inner_one(mix):
    layout = laid_out(lambda rngs: Scaled(rngs, mix), ROWS)
    assert tuple(layout.parameters["up/kernel"].stored) == (None, "model")
    if mix is blockwise:
        assert tuple(layout.parameters["blocks"].stored) == ("model", None, None)
    assert jaxpar.verify(layout, hardware=CPU, steps=1).ok


@pytest.mark.parametrize("module", [Depthwise, lambda rngs: Scaled(rngs, blockwise)])
def test_there_are_experts_only_where_there_are_experts(module):
    batch = IMAGES if module is Depthwise else ROWS
    with pytest.raises(jaxpar.LayoutError, match="no dim in role 'experts'"):
        laid_out(module, batch, "expert")


class Routed(nnx.Module):
    """Each token goes to one of four experts, with two places in each (Switch)."""

    def __init__(self, rngs):
        self.router = nnx.Linear(8, 4, use_bias=False, rngs=rngs)
        self.up = nnx.Param(jax.random.normal(rngs.params(), (4, 8, 16)))
        self.down = nnx.Param(jax.random.normal(rngs.params(), (4, 16, 8)))

    def __call__(self, x):
        scores = jax.nn.softmax(self.router(x))
        hot = jax.nn.one_hot(jnp.argmax(scores, -1), 4)
        place = jax.nn.one_hot(((jnp.cumsum(hot, 0) - 1) * hot).sum(-1).astype(int), 2)
        sent = hot[:, :, None] * place[:, None]
        h = nnx.relu(jnp.einsum("ecd,edf->ecf", jnp.einsum("tec,td->ecd", sent, x), self.up[...]))
        y = jnp.einsum("ecf,efd->ecd", h, self.down[...])
        return x + jnp.einsum("tec,ecd,te->td", sent, y, scores)


class Ensemble(nnx.Module):
    """Four networks that all get every row."""

    def __init__(self, rngs):
        self.up = nnx.Param(jax.random.normal(rngs.params(), (4, 8, 16)))
        self.down = nnx.Param(jax.random.normal(rngs.params(), (4, 16, 2)))

    def __call__(self, x):
        h = nnx.relu(jnp.einsum("bd,edf->ebf", x, self.up[...]))
        return jnp.einsum("ebf,efo->ebo", h, self.down[...])


@pytest.mark.parametrize(("module", "has"), [(Routed, True), (Ensemble, False)])
def test_experts_are_what_tokens_are_spread_over(module, has):
    model = jaxpar.model(module, loss, ROWS)
    assert ("experts" in {d.role for d in model.named if d.size == 4}) is has
