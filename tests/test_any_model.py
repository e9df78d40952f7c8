"""What else a model that was not written for jaxpar may say, hold or be given."""

import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.core.paths import paths_of

pytestmark = pytest.mark.usefixtures("drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
X = np.random.default_rng(0).standard_normal((8, 16)).astype("float32")


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(self.between(nnx.relu(self.up(x))))

    def between(self, h):
        return h


def loss(net, batch):
    return jnp.mean(net(batch["x"]) ** 2)


def laid_out(model, strategy="hybrid", mesh="data=2,model=2"):
    parsed = jaxpar.MeshShape.parse(mesh)
    return jaxpar.lay_out(model, strategy=load_strategy(strategy), mesh=parsed)


def mesh_of(sizes, names):
    types = (AxisType.Auto,) * len(names)
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=types, devices=devices)


def by_names(h):
    """With axes of a mesh that is nowhere: some at once, some under a remat."""
    h = jax.lax.with_sharding_constraint(h, P(("dp", "fsdp"), None))
    return jax.checkpoint(lambda h: jax.lax.with_sharding_constraint(jnp.sin(h), P(None, "tp")))(h)


def on_a_mesh(h):
    return jax.lax.with_sharding_constraint(h, NamedSharding(mesh_of((4,), ("tp",)), P(None, "tp")))


def on_a_device(h):
    return jax.device_put(h, jax.devices()[0])


class Constrained(nn.Module):
    """In Linen, with statistics and dropout, which change while it is called."""

    @nn.compact
    def __call__(self, x, train=True):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(32)(x))
        h = jax.lax.with_sharding_constraint(h, P("dp", "tp"))
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(jax.nn.gelu(h)))


@pytest.mark.parametrize(
    "module",
    [
        *(
            type(f.__name__, (Net,), {"between": staticmethod(f)})
            for f in (by_names, on_a_mesh, on_a_device)
        ),
        Constrained(),
    ],
    ids=lambda m: getattr(m, "__name__", "linen"),
)
def test_a_models_own_sharding_constraints_are_set_aside_and_said(module):
    """Its layout is the one that is asked for, and it is the same model."""
    layout = laid_out(jaxpar.model(module, loss, {"x": X}))
    assert "model" in {a for arr in layout.parameters.values() for a in arr.stored}
    (note,) = [note for note in layout.notes if "own sharding constraints" in note]
    assert "test_any_model.py" in note
    verdict = jaxpar.verify(layout, hardware=CPU, steps=1)
    assert verdict.ok and verdict.dtype == "float64", verdict.decisive


class Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False, axis_name="i")(nn.Dense(4)(x))


def over(function):
    return lambda net, batch: function(loss(net, batch))


@pytest.mark.parametrize(
    ("module", "called"),
    [
        (Normalised(), loss),
        (lambda rngs: nnx.BatchNorm(16, axis_name="i", rngs=rngs), loss),
        (Net, over(lambda x: jax.lax.pmean(x, "i"))),
        (Net, over(lambda x: jax.lax.all_gather(x, "i").mean())),
        (Net, over(lambda x: x * jax.lax.axis_index("i"))),
        (Net, over(lambda x: x / jax.lax.axis_size("i"))),
    ],
)
def test_a_mapped_axis_is_to_be_left_out(module, called):
    """Code for pmap is told what to do here, which JAX's own advice does not."""
    with pytest.raises(jaxpar.RequestError, match="mapped axis 'i'.*leave out") as refusal:
        jaxpar.model(module, called, {"x": X})
    assert "shard_map" not in str(refusal.value)


def test_what_is_placed_by_type_is_refused_with_the_repair():
    module = type("Typed", (Net,), {"between": lambda s, h: jax.sharding.reshard(h, P("data"))})
    with pytest.raises(jaxpar.RequestError, match="leave out the sharding constraint"):
        jaxpar.model(module, loss, {"x": X})


def mapped(h):
    """Over a mesh of its own."""
    return jax.shard_map(jnp.sin, mesh=mesh_of((2,), ("tp",)), in_specs=P("tp"), out_specs=P("tp"))(
        h
    )


def test_a_shard_map_of_a_models_own_is_refused_with_its_line():
    module = type("Mapped", (Net,), {"between": staticmethod(mapped)})
    with pytest.raises(
        jaxpar.RequestError, match=r"test_any_model.py.*\(tp=2\).*leave out shard_map"
    ):
        jaxpar.model(module, loss, {"x": X})


@pytest.mark.parametrize(
    ("said", "named"), [((("fsdp", "seq"), "tp"), ("fsdp+seq", "tp")), (("batch", None), None)]
)
def test_metadata_may_name_several_axes_or_what_rows_are_called(said, named):
    """A dim over several mesh axes has all their names; only rows are called batch."""

    class Told(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), said)
            self.up = nnx.Linear(16, 32, kernel_init=init, rngs=rngs)

        def __call__(self, x):
            return self.up(x)

    model = jaxpar.model(Told, loss, {"x": X})
    assert model.dims["up/kernel"] == (named or ("inputs", "outputs"))
    assert model.batch["x"].dims[0] == "batch"


def test_keys_may_have_slashes_in_them():
    """Two leaves never have one path, of a batch or of a module."""
    assert paths_of([("a", "b"), ("a/b",), ("a/", "b")]) == ["a/b", "'a/b'", "a//b"]

    def both(net, b):
        return loss(net, {"x": b["a/b"] + 2 * b["a"]["b"]}) + b["/"].mean()

    batch = {"a/b": X, "a": {"b": X[::-1]}, "/": X}
    model = jaxpar.model(Net, both, batch)
    assert set(model.batch) == {"'a/b'", "a/b", "/"}
    assert jaxpar.verify(laid_out(model), hardware=CPU, steps=1).ok

    class Keyed(nnx.Module):
        def __init__(self, rngs):
            inner = nnx.Dict({"b": nnx.Linear(32, 8, rngs=rngs)})
            self.at = nnx.Dict({"a/b": nnx.Linear(16, 32, rngs=rngs), "a": inner})

        def __call__(self, x):
            at: Any = self.at
            return at["a"]["b"](nnx.relu(at["a/b"](x)))

    layout = laid_out(jaxpar.model(Keyed, loss, {"x": X}))
    assert {"at/'a/b'/kernel", "at/a/b/kernel"} <= set(layout.parameters)


def test_a_batch_may_have_one_row():
    """Its first dim is the batch all the same, and more rows may come."""
    model = jaxpar.model(Net, loss, {"x": X[:1]})
    assert model.batch["x"].dims[0] == "batch"
    assert jaxpar.verify(laid_out(model, "tensor", "model=2"), hardware=CPU, steps=1).ok
    with pytest.raises(jaxpar.LayoutError, match="'batch' has size 1"):
        laid_out(model)
    assert laid_out(model.with_batch_size(4)).batch["x"] == P("data", None)


def child(name):
    class Parent(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            h = nn.BatchNorm(use_running_average=not train, name=f"{name}_norm")(x)
            h = nn.Dropout(0.5, deterministic=not train)(nn.Dense(32, name=name)(h))
            return nn.Dense(4)(nn.relu(h))

    return Parent()


@pytest.mark.parametrize("name", ["module", "rngs", "train", "sow", "run", "changing"])
def test_a_linen_child_may_have_any_name(name):
    model = jaxpar.model(child(name), loss, {"x": X})
    assert {f"{name}/kernel", f"{name}/bias", f"{name}_norm/scale"} <= set(model.dims)


def test_a_linen_module_with_such_names_is_what_it_is_on_one_device():
    """Called by other methods too, and with keys of one's own."""

    class Coder(nn.Module):
        def setup(self):
            self.train, self.module = nn.Dense(32), nn.Dense(16)
            self.drop = nn.Dropout(0.5)

        def encode(self, x):
            return nn.relu(self.train(x))

        def __call__(self, x):
            return self.module(self.drop(self.encode(x), deterministic=False))

    def called(net, b):
        keys = {"dropout": jax.random.key(3)}
        encoded = net.encode(b["x"]) + net(b["x"], method="encode")
        return jnp.mean(net(b["x"], rngs=keys) ** 2) + encoded.mean()

    layout = laid_out(jaxpar.model(Coder(), called, {"x": X}))
    assert tuple(layout.parameters["train/kernel"].stored) == (None, "model")
    assert jaxpar.verify(layout, hardware=CPU, steps=1).ok


SORTED = """
import jax.numpy as jnp
from flax import nnx


class Sorted(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)
        self.three, self.four = nnx.Linear(16, 64, rngs=rngs), nnx.Linear(64, 16, rngs=rngs)

    def __call__(self, x):
        x = x + self.two(jnp.sort(self.one(x), axis=1))
        return x + self.four(jnp.sort(self.three(x), axis=1))
"""


@pytest.mark.parametrize("folder", ["jaxpar/inference", "site-packages/jaxpar_models"])
def test_a_reason_names_the_line_wherever_a_model_lives(folder, tmp_path, monkeypatch):
    """A folder of one's own may be called jaxpar; and reasons of one kind are one note."""
    where = tmp_path / folder
    where.mkdir(parents=True)
    (where / "sorted_model.py").write_text(SORTED)
    monkeypatch.syspath_prepend(str(where))
    monkeypatch.delitem(sys.modules, "sorted_model", raising=False)
    module = importlib.import_module("sorted_model").Sorted
    layout = laid_out(jaxpar.model(module, loss, {"x": X}))
    (note,) = [note for note in layout.notes if "'sort' needs" in note]
    assert "(32)" in note and "(64)" in note and "stay replicated" in note
    assert f"{where}/sorted_model.py:12" in note and f"{where}/sorted_model.py:13" in note
