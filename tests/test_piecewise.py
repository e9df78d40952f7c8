"""What is put together only to be cut again is left apart, and computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxpr_as_fun

import jaxpar
from jaxpar.inference.pieces import Cut, cut_in, whole
from jaxpar.jaxprs.piecewise import piecewise
from jaxpar.models.modules import take_apart

pytestmark = pytest.mark.usefixtures("ranks_promoted")

RANDOM = np.random.default_rng(0)


def drawn(*shape):
    return jnp.asarray(RANDOM.standard_normal(shape, "float32"))


X = drawn(2, 5, 12)
THREE = [drawn(12, 8) for _ in range(3)]
BIASES = [drawn(8) for _ in range(3)]
UNEQUAL = [drawn(12, n) for n in (8, 4, 4)]
FILTERS = [drawn(3, 12, 4) for _ in range(2)]


def joined(parts):
    return jnp.concatenate(parts, axis=-1)


def by_split(x, *ws):
    q, k, v = jnp.split(x @ joined(ws[:3]) + joined(ws[3:]), 3, axis=-1)
    return q * k + v


def by_index(x, *ws):
    made = (x @ joined(ws[:3]) + joined(ws[3:])).reshape(2, 5, 3, 4, 2)
    return made[:, :, 0] * made[:, :, 1] + made[:, :, 2]


def by_unpacking(x, *ws):
    q, k, v = (x @ joined(ws[:3]) + joined(ws[3:])).reshape(2, 5, 3, 4, 2).transpose(2, 0, 3, 1, 4)
    return q @ k.swapaxes(-1, -2) @ v


def by_slices_of_other_sizes(x, q, k, v):
    made = jnp.einsum("bsd,df->bsf", x, joined([q, k, v])).astype("float32").astype(x.dtype)
    return made[..., :8].reshape(2, 5, 2, 4) * made[..., None, 8:12] + made[..., None, 12:]


def by_a_finer_cut(x, q, k, v):
    made = x @ joined([q, k, v])
    return made[..., 4:8], made[..., :12].sum(axis=1), made[..., 10:]


def inside_a_remat(x, *ws):
    @jax.checkpoint
    def layer(w, b):
        q, k, v = jnp.split(x @ w + b, 3, axis=-1)
        return q * k + v, jnp.sum(x @ w)

    return layer(joined(ws[:3]), joined(ws[3:]))


def inside_a_scan(x, *ws):
    stacks = [jnp.stack([w, 2 * w]) for w in ws]

    def layer(y, weights):
        made = y @ weights[0] + weights[1]
        q, k, v = jnp.split(made, 3, axis=-1)
        return y + jnp.pad(q * k + v, ((0, 0), (0, 0), (0, 4))), made

    last, made = jax.lax.scan(layer, x, (joined(stacks[:3]), joined(stacks[3:])))
    return last, made[..., :8]


def after_a_convolution(x, a, b):
    made = jax.lax.conv_general_dilated(
        x, joined([a, b]), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    one, other = jnp.split(made, 2, axis=-1)
    return jnp.tanh(one) * other


def used_whole_as_well(x, q, k, v):
    w = joined([q, k, v])
    made = x @ w
    return made[..., :8], jax.nn.softmax(made), jnp.cumsum(w, axis=1), jnp.sum(w**2)


CASES = {
    **{f.__name__: (f, [X, *THREE, *BIASES]) for f in (by_split, by_index, by_unpacking)},
    **{f.__name__: (f, [X, *THREE, *BIASES]) for f in (inside_a_remat, inside_a_scan)},
    by_slices_of_other_sizes.__name__: (by_slices_of_other_sizes, [X, *UNEQUAL]),
    by_a_finer_cut.__name__: (by_a_finer_cut, [X, *UNEQUAL]),
    after_a_convolution.__name__: (after_a_convolution, [X, *FILTERS]),
    used_whole_as_well.__name__: (used_whole_as_well, [X, *THREE]),
}


def evaluated(closed, arguments):
    return jaxpr_as_fun(closed)(*arguments)


@pytest.mark.parametrize("case", CASES)
def test_in_pieces_the_same_is_computed(case):
    """In float64 values agree to the last digits, whatever way it is cut."""
    function, arguments = CASES[case]
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a, "float64") for a in arguments]
        closed = jax.make_jaxpr(function)(*arguments)
        parted = piecewise(closed)
        assert str(parted.jaxpr) != str(closed.jaxpr)

        for one, other in zip(
            evaluated(closed, arguments), evaluated(parted, arguments), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["by_split", "by_index", "by_unpacking", "after_a_convolution"])
def test_nothing_is_put_together_any_more(case):
    """Each part is multiplied by itself."""
    function, arguments = CASES[case]
    names = [e.primitive.name for e in piecewise(jax.make_jaxpr(function)(*arguments)).jaxpr.eqns]
    assert "concatenate" not in names


def test_what_is_not_cut_is_left_as_it_is():
    """No concatenation that is needed is touched."""
    closed = jax.make_jaxpr(lambda a, b: jnp.tanh(joined([a, b])) @ jnp.ones((16, 2)))(*THREE[:2])
    assert piecewise(closed) is closed


class Shared(nnx.Module):
    """A weight that is in three places: an attribute, a list and a dict."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.again = nnx.List([self.first.kernel])
        self.named = nnx.Dict(kernel=self.first.kernel)


def test_a_module_held_in_pieces_is_whole_while_it_is_called():
    """And has one variable still where it shared one."""
    module = Shared(nnx.Rngs(0))
    kernel = module.first.kernel[...]
    [path] = [
        p for p in take_apart(module).parameters if take_apart(module).parameters[p].shape == (4, 6)
    ]
    cuts = {path: Cut(1, (2, 4))}
    cut_in(module, nnx.Param, cuts)
    held = {p: v.shape for p, v in take_apart(module).parameters.items()}
    assert held == {f"{path}/0": (4, 2), f"{path}/1": (4, 4), "first/bias": (6,)}
    with whole(module, cuts):
        assert module.first.kernel is module.again[0] is module.named["kernel"]
        np.testing.assert_array_equal(module.first.kernel[...], kernel)
    assert {p: v.shape for p, v in take_apart(module).parameters.items()} == held


class Gated(nnx.Module):
    def __init__(self, rngs):
        self.gated = nnx.Linear(8, 64, rngs=rngs)
        self.down = nnx.Linear(32, 8, rngs=rngs)

    def __call__(self, x):
        gate, up = jnp.split(self.gated(x), 2, axis=-1)
        return self.down(nnx.silu(gate) * up)


def gated(**options):
    x = jax.ShapeDtypeStruct((8, 8), "float32")
    return jaxpar.model(Gated, None, {"x": x}, **options)


def test_a_weight_is_held_in_pieces_where_that_lets_it_be_split():
    """Each piece has the names that the user gave the whole, and the note says so."""
    model = gated(dims={"gated/kernel": ("width", None)})
    assert model.dims["gated/kernel/0"] == model.dims["gated/kernel/1"] == ("width", "ffn")
    assert model.dims["gated/bias/1"] == model.dims["down/kernel"][:1] == ("ffn",)
    assert any("gated/kernel" in note for note in model.notes)
    assert model.roles["ffn"] == "inner"


def test_a_weight_whose_pieces_cannot_be_split_stays_one():
    """Scale and shift of a residual: nothing is won by cutting."""

    class Modulated(nnx.Module):
        def __init__(self, rngs):
            self.both = nnx.Linear(8, 16, rngs=rngs)
            self.up, self.down = nnx.Linear(8, 32, rngs=rngs), nnx.Linear(32, 8, rngs=rngs)

        def __call__(self, x):
            scale, shift = jnp.split(self.both(x), 2, axis=-1)
            return x + self.down(nnx.relu(self.up(x * scale + shift)))

    model = jaxpar.model(Modulated, None, {"x": jax.ShapeDtypeStruct((8, 8), "float32")})
    assert "both/kernel" in model.dims
    assert not any("pieces" in note for note in model.notes)


def test_what_is_learned_is_not_changed_by_cutting():
    """A filter that knows a variable by the end of its path would freeze the pieces."""
    model = gated(trainable=lambda path, value: path[-1] == "kernel")
    assert "gated/kernel" in model.dims
    assert not any("pieces" in note for note in model.notes)


def test_a_weight_that_a_tuple_holds_stays_one_and_the_others_do_not():
    """Nothing can be put into a tuple in its place."""

    class Both(nnx.Module):
        def __init__(self, rngs):
            self.one = Gated(rngs)
            self.held = nnx.data((nnx.Param(jnp.ones((8, 64))), nnx.Param(jnp.ones((32, 8)))))

        def __call__(self, x):
            gate, up = jnp.split(self.one(x) @ self.held[0][...], 2, axis=-1)
            return (gate * up) @ self.held[1][...]

    model = jaxpar.model(Both, None, {"x": jax.ShapeDtypeStruct((8, 8), "float32")})
    assert {"one/gated/kernel/0", "held/0"} <= model.dims.keys()


def test_a_frozen_matrix_is_held_in_pieces_too():
    """It is handed on as it came, and nobody needs it whole for that."""

    model = gated(trainable=nnx.All(nnx.Param, nnx.PathContains("down")))
    assert model.dims["gated/kernel/0"] == model.dims["gated/kernel/1"]
    assert model.roles[model.dims["down/kernel"][0]] == "inner"
