"""The door: what may be handed in, what is found out about it, what is said when it is broken."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpar
from jaxpar.case import load_model, load_strategy

pytestmark = pytest.mark.usefixtures("ranks_promoted", "drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
BATCH = {"x": jax.ShapeDtypeStruct((8, 6), "float32")}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 16, rngs=rngs)
        self.down = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


def loss(net, batch):
    return jnp.mean(net(batch["x"]) ** 2)


def laid_out(model, strategy="hybrid", mesh=None):
    return jaxpar.lay_out(
        model,
        strategy=jaxpar.STRATEGIES.load(strategy)(),
        mesh=mesh or jaxpar.MeshShape(data=4, model=2),
    )


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))


@pytest.mark.parametrize(
    "module",
    [
        lambda: Net,
        lambda: partial(Net),
        lambda: lambda rngs: Net(rngs),
        lambda: lambda r: Net(r),
        lambda: lambda: Net(nnx.Rngs(0)),
        lambda: Net(nnx.Rngs(0)),
        lambda: LinenNet(),
        lambda: LinenNet,
        lambda: lambda: LinenNet(),
    ],
    ids=[
        "class",
        "partial",
        "rngs",
        "one",
        "nothing",
        "module",
        "linen",
        "linen class",
        "linen factory",
    ],
)
def test_a_module_may_be_handed_in_in_many_ways(module):
    """All of them are the same network, with the same split."""
    layout = laid_out(jaxpar.model(module(), loss, BATCH))
    assert sorted(a.shape for a in layout.parameters.values()) == [(4,), (6, 16), (16,), (16, 4)]
    split = {a.shape: tuple(a.stored) for a in layout.parameters.values()}
    assert split[6, 16] == (None, "model") and split[16, 4] == ("model", None)


@pytest.mark.draws_sharded
def test_a_module_that_was_handed_in_keeps_its_values():
    """It may have been trained before; init places those values."""
    net = Net(nnx.Rngs(3))
    program = jaxpar.compile_step(
        jaxpar.make_step(laid_out(jaxpar.model(net, loss, BATCH))), hardware=CPU, for_speed=False
    )
    held = program.init(0).parameters["up/kernel"]
    np.testing.assert_array_equal(held, net.up.kernel[...])
    assert held.sharding.shard_shape(held.shape) == (6, 8)


@pytest.mark.parametrize(
    ("batch", "call"),
    [
        (jnp.zeros((8, 6)), lambda net, x: net(x).mean()),
        (
            (jnp.zeros((8, 6)), {"y": jnp.zeros((8, 4))}),
            lambda net, b: (net(b[0]) * b[1]["y"]).sum(),
        ),
        ({"deep": {"er": [jnp.zeros((8, 6))]}}, lambda net, b: net(b["deep"]["er"][0]).mean()),
    ],
    ids=["an array", "a pair", "a tree"],
)
def test_a_batch_may_be_any_tree(batch, call):
    """Its leaves are known by their paths, and handed to the loss as they came."""
    layout = laid_out(jaxpar.model(Net, call, batch), "data", jaxpar.MeshShape(data=4))
    assert jaxpar.verify(layout, hardware=CPU, steps=1).ok
    assert all(tuple(spec)[0] == "data" for spec in layout.batch.values())


def test_a_model_without_a_loss_can_be_inspected():
    """And a note says what stood for one."""
    layout = laid_out(jaxpar.model(Net, batch={"x": BATCH["x"]}))
    program = jaxpar.compile_step(jaxpar.make_step(layout), hardware=CPU, for_speed=False)
    assert jaxpar.inspect(program).ok
    assert any("came without a loss" in note for note in layout.notes)


def test_integers_that_are_ids_get_their_range():
    """From what they index, are compared with or scatter to, so that a probe is legal."""

    class Ids(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Embed(11, 4, rngs=rngs)

        def __call__(self, batch):
            x = self.table(batch["index"])
            hot = jax.nn.one_hot(batch["hot"], 7) @ jnp.ones((7, 4))
            sums = jax.vmap(lambda v, i: jnp.zeros((5, 4)).at[i].add(v))(x, batch["seg"])
            return jnp.mean(x + hot) + jnp.mean(sums)

    shape = jax.ShapeDtypeStruct((8, 3), "int32")
    model = jaxpar.model(Ids, lambda m, b: m(b), dict.fromkeys(("index", "hot", "seg"), shape))
    assert {n: f.below for n, f in model.batch.items()} == {"index": 11, "hot": 7, "seg": 5}


def test_names_in_metadata_hold_and_names_from_the_user_come_next():
    """Flax's spellings, NNX and Linen; roles follow from use all the same."""

    def cut(*names):
        return nnx.with_partitioning(nnx.initializers.lecun_normal(), names)

    def named(rngs):
        net = nnx.Sequential(
            nnx.Linear(6, 16, kernel_init=cut("pixels", "mlp"), rngs=rngs),
            nnx.Linear(16, 4, rngs=rngs),
        )
        return net

    found = {d.name: d.role for d in jaxpar.model(named, loss, BATCH).named}
    assert found["mlp"] == "inner" and "pixels" in found

    class Logical(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.initializers.lecun_normal()
            y = nn.Dense(16, kernel_init=nn.with_partitioning(init, ("pixels", "mlp")))(x)
            return nn.Dense(4, kernel_init=nn.with_logical_partitioning(init, ("mlp", "out")))(y)

    found = {d.name: d.role for d in jaxpar.model(Logical, loss, BATCH).named}
    assert found["mlp"] == "inner" and {"pixels", "out"} <= set(found)
    told = jaxpar.model(Net, loss, BATCH, dims={"up/kernel": (None, "hidden")})
    assert {d.name: d.role for d in told.named}["hidden"] == "inner"
    moved = jaxpar.model(Net, loss, BATCH, roles={"ffn": "feature"})
    assert "inner" not in {d.role for d in moved.named}


def test_what_is_frozen_is_sharded_and_not_learned():
    """A Flax filter says what is learned; fsdp shards the rest as well."""
    model = jaxpar.model(
        lambda rngs: nnx.LoRA(64, 4, 256, base_module=nnx.Linear(64, 256, rngs=rngs), rngs=rngs),
        lambda net, b: jnp.mean(net(b["x"]) ** 2),
        {"x": jax.ShapeDtypeStruct((8, 64), "float32")},
        trainable=nnx.LoRAParam,
    )
    layout = laid_out(model, "fsdp", jaxpar.MeshShape(data=4))
    assert set(layout.parameters) == {"lora_a", "lora_b"}
    assert "data" in tuple(layout.state["base_module/kernel"].stored)


class Growing(Net):
    def __call__(self, x):
        self.last = nnx.Variable(x)
        return super().__call__(x)


class Failing(Net):
    def __call__(self, x):
        return super().__call__(x) + jnp.zeros((3, 3))


def nothing_here():
    return 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((Net, lambda n, b: n(b["x"]), BATCH), r"loss returned an array of shape \(8, 4\)"),
        ((Net, lambda n, b: None, BATCH), "loss returned a NoneType"),
        ((Net, loss, {"x": np.zeros((8, 6)), "y": np.zeros((7,))}), r"first dim.*y \(7,\)"),
        ((Net, loss, {"x": np.zeros((8, 6)), "n": np.float32(1)}), r"first dim.*n \(\)"),
        ((Net, loss, None), "no example batch"),
        ((Net, loss, {"x": np.array(["a"])}), "holds <U1, and a batch holds numbers"),
        ((Growing, loss, BATCH), "calling it made last.*make it in __init__"),
        ((Failing, loss, BATCH), r"calling its loss raised .*test_door.py:\d+\)"),
        ((nothing_here, loss, BATCH), "expected a Flax module .*got int"),
        ((lambda rngs: 1 / 0, loss, BATCH), "making it raised ZeroDivisionError"),
        ((lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)), loss, {"x": np.zeros((4, 5))}), "raised"),
        ((lambda: nnx.Dropout(0.5), lambda m, b: m(b["x"]).mean(), BATCH), "nothing to learn"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_broken_model_gets_one_sentence(arguments, sentence):
    """Where, what was met, and what to do; never a traceback."""
    with pytest.raises(jaxpar.RequestError, match=f"(?s){sentence}") as caught:
        jaxpar.model(*arguments)
    assert "\n" not in str(caught.value)


def test_names_for_what_is_not_there_are_refused():
    """A rename must not make a layout silently another."""
    with pytest.raises(jaxpar.RequestError, match="'up/kernal': did you mean 'up/kernel'"):
        jaxpar.model(Net, loss, BATCH, dims={"up/kernal": (None, None)})
    with pytest.raises(jaxpar.RequestError, match="2 names|3 names"):
        jaxpar.model(Net, loss, BATCH, dims={"up/kernel": (None, None, None)})
    with pytest.raises(jaxpar.RequestError, match="unknown dim in roles"):
        jaxpar.model(Net, loss, BATCH, roles={"fnn": "inner"})


def test_a_loss_that_is_not_finite_at_the_start_is_said():
    """Two NaNs are equal on any number of devices, and prove nothing."""
    model = jaxpar.model(Net, lambda n, b: jnp.log(-jnp.mean(n(b["x"]) ** 2)), BATCH)
    with pytest.raises(jaxpar.RequestError, match="not finite.*before any update"):
        jaxpar.verify(laid_out(model), hardware=CPU)


def test_a_factory_that_cannot_be_imported_or_fails_is_one_sentence(tmp_path, monkeypatch):
    """On the command line a model is package.module:factory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stranger_broken.py").write_text("import nosuchpackage\n")
    (tmp_path / "stranger_typo.py").write_text("def factory(:\n")
    (tmp_path / "stranger.py").write_text(
        "def factory(size):\n    return size\n\ndef bad():\n    1 / 0\n"
    )
    for name, sentence in (
        ("nosuch:factory", "cannot import 'nosuch'"),
        ("stranger_broken:factory", "nosuchpackage"),
        ("stranger_typo:factory", "SyntaxError"),
        ("stranger:factory", "takes arguments"),
        ("stranger:bad", r"ZeroDivisionError.*stranger.py:5"),
    ):
        with pytest.raises(jaxpar.RequestError, match=sentence):
            load_model(name)


class Tabled(Net):
    """With a table that is a plain attribute, and a norm whose variables have keys in pairs."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.table = jnp.sin(jnp.arange(6.0))
        self.normed = nnx.SpectralNorm(nnx.Linear(6, 6, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return super().__call__(self.normed(x) + self.table[None])


def test_bare_arrays_and_keys_of_any_kind_are_kept():
    """Flax lets a module hold an array as it is, and a variable's key be a pair."""
    layout = laid_out(jaxpar.model(Tabled, loss, BATCH))
    assert "table" in layout.state and "normed/batch_stats/kernel/u" in layout.state
    assert jaxpar.verify(layout, hardware=CPU, steps=1).ok


def test_a_number_that_jax_keeps_with_its_dtype_is_widened_too():
    """As in a quantile: else a literal of float32 would meet a float64."""

    def robust(net, batch):
        return jnp.quantile(jnp.sum(net(batch["x"]) ** 2, axis=-1), 0.3)

    verdict = jaxpar.verify(laid_out(jaxpar.model(Net, robust, BATCH)), hardware=CPU, steps=1)
    assert verdict.ok and verdict.dtype == "float64"


def test_what_is_evaluated_on_devices_draws_nothing():
    """Dropout is off there as it is on one device."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.down(self.dropout(nnx.relu(self.up(x))))

    batch = {"x": np.random.default_rng(0).standard_normal((8, 8)).astype("float32")}
    model = jaxpar.model(Net, lambda net, batch: jnp.mean(net(batch["x"]) ** 2), batch)
    losses = []
    for strategy, mesh in (("single", "data=1"), ("hybrid", "data=2,model=2")):
        layout = jaxpar.lay_out(
            model, strategy=load_strategy(strategy), mesh=jaxpar.MeshShape.parse(mesh)
        )
        program = jaxpar.compile_step(jaxpar.make_step(layout), hardware=CPU)
        losses.append(float(program.evaluate(program.init(0), program.place(batch))["loss"].value))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


class Grouped(nnx.Module):
    """Four queries to two keys and values, repeated; queries and keys turned by a table."""

    def __init__(self, rngs):
        self.token = nnx.Embed(64, 32, rngs=rngs)
        self.position = nnx.Embed(16, 32, rngs=rngs)
        self.q, self.out = nnx.Linear(32, 32, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)
        self.k, self.v = nnx.Linear(32, 16, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

    def __call__(self, ids, places):
        x = self.token(ids) + self.position(places)
        q, k, v = (f(x).reshape(*ids.shape, -1, 8) for f in (self.q, self.k, self.v))
        angle = jnp.arange(16.0)[:, None, None] * jnp.exp(-jnp.arange(8.0))
        q, k = q * jnp.cos(angle)[None], k * jnp.cos(angle)[None]
        k, v = (jnp.repeat(y, 2, axis=2) for y in (k, v))
        y = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(y), v)
        return x + self.out(y.reshape(x.shape))


def test_names_tell_groups_of_queries_positions_and_widths_apart():
    """Repeated keys pair with each query of a group; a table of angles is no activation."""
    ids = jax.ShapeDtypeStruct((8, 16), "int32")
    model = jaxpar.model(
        Grouped,
        lambda net, b: jnp.mean(net(b["ids"], b["places"]) ** 2),
        {"ids": ids, "places": ids},
    )
    assert model.dims["token/embedding"] == ("vocab", "embed")
    assert model.dims["position/embedding"] == ("positions", "embed")
    assert model.dims["q/kernel"] == ("embed", "heads*group*head_dim_0")
    assert model.dims["k/kernel"] == ("embed", "heads*head_dim_0")
    assert model.dims["v/kernel"] == ("embed", "heads*head_dim_1")
    assert model.dims["out/kernel"] == ("heads*group*head_dim_1", "embed")
    assert model.roles["heads"] == "heads" and model.roles["group"] == "feature"
