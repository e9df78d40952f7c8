"""Models that nobody annotated, under strategies that nobody wrote for them: the laws they keep."""

from functools import cache, partial
from itertools import cycle

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from plain.catalogue import factories
from small import small_model

import jaxpar
from jaxpar.case import load_strategy
from jaxpar.jaxprs import unify
from jaxpar.jaxprs.rules.record import FactorCounter

pytestmark = pytest.mark.usefixtures("ranks_promoted", "drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
H100 = jaxpar.HARDWARE.load("h100")()
FACTORIES = factories()
MODES = ("auto", "explicit", "manual")
LAYOUTS = (
    ("fsdp+tensor", "data=2,model=2"),
    ("data", "data=2"),
    ("tensor", "model=4"),
    ("fsdp", "data=4"),
    ("hybrid", "data=4,model=2"),
)
TURNS = [
    (name, strategy, mesh, mode)
    for name, (strategy, mesh), mode in zip(FACTORIES, cycle(LAYOUTS), cycle(MODES), strict=False)
]
"""Each model once, strategies and modes by turns: all pairs take half an hour."""


DRAWN = ("fused", "scanned", "resnet", "mixture")
"""Networks whose first state a layout draws: one in pieces, in a loop, by Linen, with experts."""


def spelled_once():
    """The turns; of a network that is spelled in NNX and in Linen one in turn, the other a claim.

    The names of dims are found of each: see below.
    """
    networks = dict.fromkeys(name.split(":")[0] for name in FACTORIES)
    cases = {n: [turn for turn in TURNS if turn[0].split(":")[0] == n] for n in networks}
    for turn, (_, spellings) in enumerate(cases.items()):
        for k, case in enumerate(spellings):
            marks = [] if k == turn % len(spellings) else [pytest.mark.claims]
            if case[0].startswith(DRAWN):
                marks.append(pytest.mark.draws_sharded)
            yield pytest.param(*case, marks=marks)


@cache
def made(name: str) -> jaxpar.Model:
    return FACTORIES[name]()


def laid_out(model, strategy, mesh):
    options = {"whole_below": 0} if "fsdp" in strategy else {}
    return jaxpar.lay_out(
        model,
        strategy=load_strategy(strategy, **options),
        mesh=jaxpar.MeshShape.parse(mesh),
    )


@pytest.mark.parametrize(("name", "strategy", "mesh", "mode"), list(spelled_once()), ids=str)
def test_a_plain_model_is_what_it_is_on_one_device(name, strategy, mesh, mode):
    """In float64, whatever it casts to; or the refusal says that nothing can be split."""
    try:
        layout = laid_out(made(name), strategy, mesh)
    except jaxpar.LayoutError as refusal:
        assert name == "graph:in_linen" and "can shard nothing" in str(refusal)
        return
    verdict = jaxpar.verify(
        layout, hardware=CPU, make=partial(jaxpar.make_step, mode=mode), steps=1
    )
    assert verdict.ok, verdict.decisive
    assert verdict.dtype == "float64"


@pytest.mark.parametrize("name", FACTORIES)
def test_every_dim_of_a_plain_model_has_a_name_and_every_name_a_role(name):
    """Names cover every array; no primitive of these models is without a rule."""
    model = made(name)
    layout = laid_out(model, "single", "data=1")
    for array in (*layout.parameters.values(), *layout.state.values()):
        assert len(array.dims) == len(array.shape)
        assert "unnamed" not in array.dims, array.path
    assert not any("no rule" in note for note in model.notes), model.notes
    sizes = {d.name: d.size for d in model.named}
    assert all(sizes[unit] == n for unit, n in model.units.items() if "*" not in unit)


def test_names_do_not_depend_on_the_order_in_which_a_loss_is_written():
    """Two towers called in either order, and every local variable renamed."""

    class Towers(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Sequential(nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs))
            self.b = nnx.Sequential(nnx.Linear(6, 32, rngs=rngs), nnx.Linear(32, 4, rngs=rngs))

    def one(m, batch):
        left, right = m.a(batch["x"]), m.b(batch["x"])
        return jnp.mean((left - right) ** 2)

    def other(m, batch):
        second = m.b(batch["x"])
        first = m.a(batch["x"])
        return jnp.mean(jnp.square(first - second))

    batch = {"x": jax.ShapeDtypeStruct((8, 6), "float32")}
    assert jaxpar.model(Towers, one, batch).named == jaxpar.model(Towers, other, batch).named


# The decoder of the catalogue at small sizes, as someone who never heard of jaxpar would write it.
SIZES = {"layers": 2, "width": 64, "heads": 4, "ffn": 256, "vocabulary": 128, "sequence": 32}
ROWS = 8


def turned(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Layer(nnx.Module):
    def __init__(self, rngs):
        width, hidden = SIZES["width"], SIZES["ffn"]
        shapes = [(width, width)] * 4 + [(width, hidden), (hidden, width)]
        made = [nnx.Linear(a, b, use_bias=False, rngs=rngs) for a, b in shapes]
        self.q, self.k, self.v, self.out, self.up, self.down = made
        self.norm1, self.norm2 = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, x):
        y = self.norm1(x)
        q, k, v = (
            dense(y).reshape(*y.shape[:2], SIZES["heads"], -1) for dense in (self.q, self.k, self.v)
        )
        y = jax.nn.dot_product_attention(turned(q), turned(k), v, is_causal=True)
        x = x + self.out(y.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Fused(Layer):
    """The same with one matrix for queries, keys and values."""

    def __init__(self, rngs):
        super().__init__(rngs)
        width = SIZES["width"]
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        del self.q, self.k, self.v

    def q(self, x):
        return jnp.split(self.qkv(x), 3, axis=-1)[0]

    def k(self, x):
        return jnp.split(self.qkv(x), 3, axis=-1)[1]

    def v(self, x):
        return self.qkv(x).reshape(*x.shape[:2], 3, -1)[:, :, 2]


class Twin(nnx.Module):
    def __init__(self, rngs, layer=Layer):
        width, vocabulary = SIZES["width"], SIZES["vocabulary"]
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.layers = nnx.List([layer(rngs) for _ in range(SIZES["layers"])])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def twin_loss(model, batch):
    logits = model(batch["ids"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]).mean()
    # The catalogue's accuracy: a label's score against the highest.
    own = jnp.take_along_axis(logits, batch["next"][..., None], axis=-1)[..., 0]
    return loss, {"accuracy": (own >= logits.max(axis=-1)).mean()}


def twin(layer=Layer):
    ids = jax.ShapeDtypeStruct((ROWS, SIZES["sequence"]), "int32")
    return jaxpar.model(
        partial(Twin, layer=layer), twin_loss, {"ids": ids, "next": ids}, name="twin"
    )


def collectives_under_tensor(model, mode):
    layout = laid_out(model, "tensor", "model=4")
    program = jaxpar.compile_step(jaxpar.make_step(layout, mode=mode), hardware=H100)
    inspection = jaxpar.inspect(program)
    assert inspection.ok, inspection.faults
    return [(row.kind, row.axes, row.bytes) for row in inspection.collectives]


def test_a_plain_decoder_has_its_annotated_twins_collectives():
    """Kind by kind and byte by byte, on the described H100."""
    annotated = small_model("transformer", norm="rms", kv_heads=None, **SIZES)
    annotated = annotated.with_batch_size(ROWS)
    expected = collectives_under_tensor(annotated, "auto")
    residual = ROWS * SIZES["sequence"] * SIZES["width"] * 4
    # Two sums of the residual a block forward and two backward, one for the embedding, one for the
    # head; the rest are a few numbers a token: softmax and accuracy.
    (kind, axes, total), *more = expected
    assert (kind, axes, more) == ("all-reduce", ("model",), [])
    textbook = (4 * SIZES["layers"] + 2) * residual
    assert textbook <= total <= textbook + 8 * ROWS * SIZES["sequence"] * 4
    assert collectives_under_tensor(twin(), "auto") == expected
    assert collectives_under_tensor(twin(Fused), "auto") == expected


def test_without_the_walk_through_reshapes_the_twin_would_be_told_apart(monkeypatch):
    """The law above can fail: heads that are not found leave attention replicated."""
    real = unify.factors

    def blind(eqn):
        if eqn.primitive.name != "reshape":
            return real(eqn)
        counter = FactorCounter()
        whole = [[counter.whole_dims(v.aval.shape) for v in vs] for vs in (eqn.invars, eqn.outvars)]
        return counter.seal(*whole)

    monkeypatch.setattr(unify, "factors", blind)
    layout = laid_out(twin(), "tensor", "model=4")
    assert not any(d.role == "heads" for d in layout.model.named)
    assert layout.parameters["layers/0/q/kernel"].stored == jax.P(None, None)


@pytest.mark.parametrize("name", ["scanned:in_nnx", "scanned:in_linen"])
def test_scanned_layers_are_gathered_one_at_a_time(name):
    """As an annotated stack is: twice a step inside the loop, gradients scattered there.

    Rows of the embedding travel instead of it, forward and backward.
    """
    layout = laid_out(made(name), "fsdp", "data=4")
    stacked = sum(a.whole_bytes for a in layout.parameters.values() if a.dims[0] == "layers")
    table = next(a for p, a in layout.parameters.items() if "embed" in p.lower())
    program = jaxpar.compile_step(jaxpar.make_step(layout), hardware=H100)
    rows = {row.kind: row.bytes for row in jaxpar.inspect(program).collectives}
    ids = next(iter(layout.model.batch.values()))
    own = ids.shape[0] // 4 * ids.shape[1]
    assert rows["all-to-all"] == 2 * own * table.whole_bytes // table.shape[0]
    assert rows["reduce-scatter"] == layout.parameter_bytes - table.whole_bytes
    # A bias that is only added is not needed again.
    once = (
        layout.parameter_bytes - table.whole_bytes + 4 * own * jax.numpy.dtype(ids.dtype).itemsize
    )
    assert 0.9 * stacked <= rows["all-gather"] - once <= stacked


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_a_depthwise_filter_is_the_whole_batchs(mode):
    """In each mode; XLA alone gives one device's share."""
    layout = laid_out(made("depthwise:in_nnx"), "data", "data=2")
    verdict = jaxpar.verify(
        layout, hardware=CPU, make=partial(jaxpar.make_step, mode=mode), steps=1
    )
    assert verdict.ok, verdict.decisive
