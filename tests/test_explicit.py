"""Explicit mode: shardings in types, islands where JAX types nothing, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from small import small_layout

import jaxpar

pytestmark = pytest.mark.usefixtures("drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
EXPLICIT = partial(jaxpar.make_step, mode="explicit")


@pytest.mark.parametrize(
    ("model", "strategy", "mesh"),
    [
        ("mlp", "hybrid", "data=4,model=2"),
        ("convnet", "fsdp", "data=4"),
        ("transformer", "fsdp+tensor", "data=2,model=2"),
        ("transformer", "zero2", "data=4"),
        ("moe", "expert+data", "data=2,model=2"),
    ],
)
def test_a_model_of_the_catalogue_is_what_it_is_on_one_device(model, strategy, mesh):
    """Annotated or not, dims are followed through loss and gradient."""
    verdict = jaxpar.verify(
        small_layout(model, strategy, mesh), hardware=CPU, make=EXPLICIT, steps=1
    )
    assert verdict.ok, verdict.decisive


def transformed(h):
    return jnp.fft.fft(h, axis=0).real / 4


def turned(h):
    """A recurrence along the first dim."""
    return jax.lax.scan(lambda carry, row: (0.5 * carry + row,) * 2, jnp.zeros_like(h[0]), h)[1]


def smoothed(h):
    return jax.vmap(lambda row: jnp.convolve(row, jnp.ones(3) / 3, mode="same"), 1, 1)(h)


def looped(h):
    """Of which JAX differentiates nothing, since it does not know how often it turns."""
    many = jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, transformed(c[1])), (0, jax.lax.stop_gradient(h))
    )
    return h + many[1]


ALONG_ROWS = {
    "a Fourier transform": transformed,
    "one in a while loop": looped,
    "a recurrence": turned,
    "the rest": lambda h: smoothed(jnp.cumsum(jnp.sort(h, axis=0), axis=0)),
}
CASES = {name: (along, "data", "data=4") for name, along in ALONG_ROWS.items()}
CASES["a recurrence along a width"] = (lambda h: turned(h.T).T, "tensor", "model=4")


@pytest.mark.parametrize(("along", "strategy", "mesh"), CASES.values(), ids=CASES)
def test_what_goes_along_a_sharded_dim_is_right(along, strategy, mesh):
    """Gathered where the operation is not done a shard at a time; XLA ends no process."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, x):
            return self.down(along(nnx.relu(self.up(x))))

    x = jax.ShapeDtypeStruct((8, 8), "float32")
    model = jaxpar.model(Net, lambda net, b: jnp.mean((net(b["x"]) - b["x"]) ** 2), {"x": x})
    layout = jaxpar.lay_out(model, strategy=strategy, mesh=mesh)
    verdict = jaxpar.verify(layout, hardware=CPU, make=EXPLICIT, steps=1)
    assert verdict.ok, verdict.decisive


def program_of(loss, batch):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(32, 8, rngs=rngs)
            self.up = nnx.Linear(8, 16, rngs=rngs)
            self.down = nnx.Linear(16, 8, rngs=rngs)

    layout = jaxpar.lay_out(
        jaxpar.model(Net, loss, batch),
        strategy=jaxpar.STRATEGIES.load("hybrid")(),
        mesh=jaxpar.MeshShape(data=4, model=2),
    )
    return jaxpar.compile_step(EXPLICIT(layout), hardware=CPU, for_speed=False)


def test_what_jax_has_no_typed_rule_for_becomes_an_island_with_its_line():
    """An embedding's lookup; the products round it are typed."""

    def loss(net, batch):
        return jnp.mean(net.down(nnx.relu(net.up(net.table(batch["ids"])))) ** 2)

    ids = jax.ShapeDtypeStruct((16, 4), "int32")
    islands = program_of(loss, {"ids": ids}).step.traced.islands
    assert {i.primitive for i in islands} == {"gather", "scatter-add"}
    assert all("test_explicit.py" in i.source for i in islands), islands
    assert all(i.why for i in islands)


def test_a_model_of_products_alone_needs_no_island():
    """Its collectives are the textbook's: one sum of activations, one of gradients."""

    def loss(net, batch):
        return jnp.mean(net.down(nnx.relu(net.up(batch["x"]))) ** 2)

    program = program_of(loss, {"x": jax.ShapeDtypeStruct((16, 8), "float32")})
    assert program.step.traced.islands == ()
    assert {row.kind for row in jaxpar.inspect(program).collectives} == {"all-reduce"}


@pytest.mark.parametrize(
    ("strategy", "mesh", "why"),
    [
        ("context", "model=2", "exchanges shards of the sequence"),
        ("fsdp+sequence", "data=2,model=2", "shards the residual otherwise"),
        ("pipeline", "pipe=2", "runs layers in stages"),
        ("local_sgd", "replica=2", "trains replicas that average"),
    ],
)
def test_what_maps_devices_by_hand_is_refused(strategy, mesh, why):
    """With the modes that can do it."""
    with pytest.raises(jaxpar.LayoutError, match=f"{why}.*--mode auto or --mode manual"):
        EXPLICIT(small_layout("transformer", strategy, mesh))
