"""Ids of a batch stay ids through whatever a loss does with them, and what it counts is none."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

import jaxpar
from jaxpar.jaxprs.facts import Facts, through

pytestmark = pytest.mark.usefixtures("ranks_promoted")

X = np.arange(48, dtype="int32").reshape(8, 6) % 7
GIVEN = Facts(other=True, ids=True, fields=frozenset({"x"}))

KEPT = {
    "pad and slice": lambda x: jnp.pad(x, ((0, 0), (1, 0)))[:, :-1],
    "dynamic_slice": lambda x: lax.dynamic_slice_in_dim(jnp.pad(x, ((0, 0), (1, 0))), 0, 6, 1),
    "scatter": lambda x: jnp.zeros_like(x).at[:, 1:].set(x[:, :-1]).at[:, 0].set(1),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(jnp.zeros_like(x), x[:, :2], (0, 3)),
    "times a mask": lambda x: x * (x > 3),
    "times a stretched mask": lambda x: x * (x[:, :1] > 3).astype(x.dtype),
    "where": lambda x: jnp.where(jnp.arange(6) < 3, x, 0),
    "reversed": lambda x: jnp.flip(x, 1),
    "rolled": lambda x: jnp.roll(x, 1, axis=1),
    "rolled by a number": lambda x: jnp.roll(x, x[0, 0], axis=1),
    "gathered": lambda x: jnp.take(x, jnp.arange(6)[::-1], axis=1),
    "vmap index": lambda x: jax.vmap(lambda row: row[jnp.arange(6)])(x),
    "take_along_axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, axis=1), axis=1),
    "cond": lambda x: lax.cond(x[0, 0] > 3, lambda x: x, lambda x: jnp.zeros_like(x), x),
    "switch": lambda x: lax.switch(x[0, 0], [lambda x: x, jnp.zeros_like, lambda x: x[::-1]], x),
    "scanned": lambda x: lax.scan(lambda c, row: (row, c), jnp.zeros_like(x[0]), x)[1],
    "carried": lambda x: lax.scan(lambda c, _: (jnp.roll(c, 1), None), x, None, length=3)[0],
    "carried later": lambda x: lax.scan(
        lambda c, row: ((c[1], row), c[0]), (jnp.zeros_like(x[0]), jnp.zeros_like(x[0])), x
    )[1],
    "while": lambda x: lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1][::-1]), (0, x))[
        1
    ],
    "fori": lambda x: lax.fori_loop(0, 6, lambda k, y: y.at[:, k].set(x[:, k]), jnp.zeros_like(x)),
    "sorted": lambda x: jnp.sort(x, axis=1),
    "sorted with others": lambda x: lax.sort((jnp.ones(x.shape), x), dimension=1)[1],
    "stacked": lambda x: jnp.stack([x, x + 0 * x])[0],
    "split": lambda x: jnp.split(x, 2, axis=1)[1],
    "tiled": lambda x: jnp.tile(x, (1, 2)),
    "repeated": lambda x: jnp.repeat(x, 2, axis=1),
    "largest": lambda x: jnp.max(x, axis=1),
    "clipped": lambda x: jnp.clip(x, 0, 5),
    "under jit": lambda x: jax.jit(lambda x: x[:, ::-1])(x),
    "under checkpoint": lambda x: jax.checkpoint(lambda x: x[:, ::-1])(x),
    "of a constraint": lambda x: lax.optimization_barrier((jnp.ones(3), x))[1],
}
COMPUTED = {
    "modulo": lambda x: x % 5,
    "offset": lambda x: x + jnp.arange(6) * 7,
    "hashed": lambda x: (x * 2654435 ^ (x >> 3)) % 5,
    "divided": lambda x: x // 3,
    "picked by a sum": lambda x: jnp.sum(x * jax.nn.one_hot(2, 6, dtype=x.dtype), axis=1),
    "added up": lambda x: jnp.zeros_like(x).at[:, 1:].add(x[:, :-1]),
}
DRAWN = {
    "randint": lambda x: jax.random.randint(jax.random.key(0), (8, 6), 0, 7),
}
NONE = {
    "positions": lambda x: jnp.arange(6),
    "positions of words": lambda x: jnp.cumsum(x > 0, axis=1),
    "the place of the largest": lambda x: jnp.argmax(x, axis=1),
    "an order": lambda x: jnp.argsort(x, axis=1),
    "a choice": lambda x: lax.top_k(x, 2)[1],
    "how many": lambda x: jnp.bincount(jnp.ravel(x > 3), length=2),
    "constants picked by ids": lambda x: jnp.arange(7)[::-1][x],
    "branches": lambda x: lax.cond(x[0, 0] > 3, lambda: jnp.arange(6), lambda: jnp.zeros(6, int)),
    "a counter": lambda x: lax.scan(lambda c, row: (c + 1, c), 0, x)[1],
}


def facts_of(function):
    (found,) = through(jax.make_jaxpr(function)(X), [GIVEN])
    return found


@pytest.mark.parametrize("function", KEPT.values(), ids=KEPT)
def test_ids_that_are_moved_or_masked_are_ids_in_the_same_range(function):
    found = facts_of(function)
    assert found.ids and found.fields == {"x"}


@pytest.mark.parametrize("function", [*COMPUTED.values(), *DRAWN.values()], ids=[*COMPUTED, *DRAWN])
def test_ids_computed_from_ids_are_ids_of_another_range(function):
    found = facts_of(function)
    assert found.ids and not found.fields - {"x"}


def test_an_offset_tells_nothing_of_the_range_of_a_field():
    assert not facts_of(COMPUTED["offset"]).fields
    assert not facts_of(lambda x: 2 * x).fields
    assert not facts_of(COMPUTED["modulo"]).fields


@pytest.mark.parametrize("function", NONE.values(), ids=NONE)
def test_what_a_loss_counts_by_itself_is_no_id(function):
    assert not facts_of(function).ids


class Language(nnx.Module):
    """A table of 48, a feed-forward part of 64, and a head."""

    def __init__(self, rngs, lookup):
        self.lookup = lookup
        self.table = nnx.Param(jax.random.normal(rngs.params(), (48, 16)))
        self.up, self.down = nnx.Linear(16, 64, rngs=rngs), nnx.Linear(64, 16, rngs=rngs)
        self.head = nnx.Linear(16, 40, rngs=rngs)

    def __call__(self, x):
        x = self.lookup(self.table[...], x)
        return self.head(x + self.down(nnx.relu(self.up(x))))


LOOKUPS = {
    "shifted": lambda table, x: table[
        lax.dynamic_slice_in_dim(jnp.pad(x, ((0, 0), (1, 0))), 0, 6, 1)
    ],
    "several tables in one": lambda table, x: table[x + 8 * jnp.arange(6)],
    "one-hot": lambda table, x: jax.nn.one_hot(x, 48) @ table,
    "drawn beside given": lambda table, x: (
        table[x] - table[jax.random.randint(jax.random.key(0), x.shape, 0, 48)]
    ),
}


@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS)
def test_a_table_that_ids_look_up_has_a_vocabulary(lookup):
    """And so has a head whose loss is written with a one-hot."""

    def loss(m, b):
        hot = jax.nn.one_hot(b["x"], 40)
        return optax.softmax_cross_entropy(m(b["x"]), hot).mean()

    model = jaxpar.model(lambda rngs: Language(rngs, lookup), loss, {"x": X})
    roles = {(d.size, d.name): d.role for d in model.named}
    assert roles[48, "vocab"] == roles[40, "classes"] == "vocabulary"


def test_what_nothing_asks_for_is_no_obstacle():
    """Neither a result that is thrown away, nor a piece of no element."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, x):
            h = self.up(x)
            jnp.sort(h, axis=1)
            _, gate, value, _ = jnp.split(h, [0, 16, 32], axis=1)
            return self.down(nnx.silu(gate) * value)

    model = jaxpar.model(Net, lambda m, b: m(b["x"]).mean(), {"x": np.ones((4, 8), "float32")})
    assert ("ffn", "inner", 16) in {(d.name, d.role, d.size) for d in model.named}


class Recommender(nnx.Module):
    """A table for each column of ids, and dense features."""

    def __init__(self, rngs, whole):
        self.whole = whole
        self.tables = nnx.List([nnx.Embed(n, 8, rngs=rngs) for n in (96, 32)])
        self.up, self.down = nnx.Linear(3 + 16, 64, rngs=rngs), nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, dense, sparse):
        ids = self.whole(sparse)
        found = [table(ids[:, k]) for k, table in enumerate(self.tables)]
        return self.down(nnx.relu(self.up(jnp.concatenate([dense, *found], axis=-1))))


FLOATS = {
    "cast": lambda x: x.astype("int32"),
    "rounded": lambda x: jnp.round(x).astype("int32"),
    "made integers one by one": lambda x: jnp.stack([x[:, k].astype("int32") for k in (0, 1)], 1),
}


def recommender(whole, columns):
    """Of ids beside dense features, or behind them in one array of floats; by shapes alone."""

    def loss(net, batch):
        dense, sparse = (batch["x"][:, :3], batch["x"][:, 3:]) if columns else batch["x"]
        return jnp.mean((net(dense, sparse)[:, 0] - batch["y"]) ** 2)

    def float_of(*shape):
        return jax.ShapeDtypeStruct(shape, "float32")

    x = float_of(16, 5) if columns else (float_of(16, 3), float_of(16, 2))
    return jaxpar.model(lambda rngs: Recommender(rngs, whole), loss, {"x": x, "y": float_of(16)})


@pytest.mark.parametrize("columns", [False, True], ids=["apart", "in one array"])
@pytest.mark.parametrize("whole", FLOATS.values(), ids=FLOATS)
def test_floats_that_are_made_integers_as_they_came_are_ids(whole, columns):
    """Their tables are vocabularies; what else is in one array of floats has no bound of ids."""
    model = recommender(whole, columns)
    for k in range(2):
        assert model.roles[model.dims[f"tables/{k}/embedding"][0]] == "vocabulary"
    bounds = {name: (f.below, f.most) for name, f in model.batch.items() if f.below}
    assert bounds == ({} if columns else {"x/1": (32, 96)})


@pytest.mark.parametrize("mode", ["auto", "manual"])
def test_a_table_of_float_ids_is_sharded_and_right(mode):
    layout = jaxpar.lay_out(recommender(FLOATS["cast"], False), strategy="tensor", mesh="model=4")
    assert layout.parameters["tables/0/embedding"].stored[0] == "model"
    verdict = jaxpar.verify(
        layout,
        hardware=jaxpar.HARDWARE.load("cpu")(),
        make=lambda layout: jaxpar.make_step(layout, mode=mode),
        steps=1,
    )
    assert verdict.ok, verdict.decisive


def test_buckets_of_floats_are_no_ids():
    model = recommender(lambda x: jnp.floor(8 * x).astype("int32"), False)
    assert model.roles[model.dims["tables/0/embedding"][0]] != "vocabulary"


def test_a_part_of_a_field_may_hold_what_its_own_table_has():
    """The smallest table bounds a probe, and refuses no row."""
    x = np.zeros((64, 2), "float32")
    data = {"x/0": np.zeros((64, 3), "float32"), "x/1": x, "y": np.zeros(64, "float32")}
    layout = jaxpar.lay_out(recommender(FLOATS["cast"], False), strategy="data", mesh="data=2")
    step = jaxpar.make_step(layout)

    def train():
        batches = [{name: value[:16] for name, value in data.items()}]
        dataset = jaxpar.data.iterable.dataset(lambda: batches)
        program = jaxpar.compile_step(step, hardware="cpu", for_speed=False)
        jaxpar.train(program, dataset, jaxpar.Training(steps=1))

    x[0, 0] = 95
    train()
    x[0, 0] = 96
    with pytest.raises(jaxpar.RequestError, match="holds 96.0.*goes up to 95"):
        train()
