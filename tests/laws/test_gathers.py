"""A gather of a weight says whose it is: weights of one shape are not taken for each other."""

import re
from collections import Counter
from math import prod

import jax
import pytest
from flax import nnx

from jaxpar.core.mesh import MeshShape
from jaxpar.hardware.cpu import hardware as cpu
from jaxpar.inference.model import model as plain_model
from jaxpar.layout.lay_out import lay_out
from jaxpar.program.record import compile_step
from jaxpar.step.make_step import make_step
from tests.small import MODES, small_model, small_strategy

pytestmark = pytest.mark.usefixtures("drawn_once")

DATA = MeshShape.parse("data=4")


class Layer(nnx.Module):
    """A gated layer: its `gate` and its `up` have one shape and the same dims."""

    def __init__(self, rngs):
        self.gate = nnx.Linear(64, 256, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(64, 256, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(256, 64, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.silu(self.gate(x)) * self.up(x))


class Stack(nnx.Module):
    """Three such layers in a scan over stacked weights."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=(0,), out_axes=0))
        self.layers = make(rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.layers)


def _stacked():
    """`Stack` as its author would hand it in."""
    x = jax.ShapeDtypeStruct((32, 64), "float32")
    return plain_model(Stack, lambda net, b: ((net(b["x"]) - b["y"]) ** 2).mean(), {"x": x, "y": x})


def gathers(text: str) -> Counter:
    """(the weight that it names, or None; elements of its result) of every all-gather -> count."""
    found = Counter()
    for line in re.findall(r"^.* all-gather(?:-start)?\(.*$", text, re.M):
        weight = re.search(r"weight\(([\w.]+)\)", line)
        shapes = re.findall(r"\w+\[([\d,]*)\]", line.partition(" all-gather")[0])
        elements = prod(map(int, shapes[-1].split(",")))
        found[weight and weight[1].replace(".", "/"), elements] += 1
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["mlp", "transformer", "stack of gated layers"])
def test_every_gather_names_the_weight_that_it_gathers(name, mode):
    """By its size, of one layer or of all; and weights that have a twin are gathered as often."""
    model = _stacked() if name.startswith("stack") else small_model(name)
    layout = lay_out(model, strategy=small_strategy("fsdp"), mesh=DATA)
    text = compile_step(make_step(layout, mode=mode), hardware=cpu()).text
    found = gathers(text)
    sharded = {p: a for p, a in layout.parameters.items() if any(a.stored)}
    assert sharded and {weight for weight, _ in found} == set(sharded)
    for (weight, elements), _ in found.items():
        shape = sharded[weight].shape
        assert elements in (prod(shape), prod(shape[1:])), (weight, elements, shape)
    if name == "stack of gated layers":
        times = {w: sum(n for (v, _), n in found.items() if v == w) for w in sharded}
        assert times["layers/gate/kernel"] == times["layers/up/kernel"], times
