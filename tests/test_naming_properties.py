"""Random small networks: the order of arguments is no matter, and layouts equal one device."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import jaxpar
from jaxpar.case import load_strategy

pytestmark = pytest.mark.usefixtures("ranks_promoted", "drawn_once")

CPU = jaxpar.HARDWARE.load("cpu")()
ROWS, LENGTH, WIDTH = 8, 4, 8

# A network is a list of parts, each a change of x (rows, length, width) that keeps its shape.
PARTS = {
    "ffn": lambda n, r: [nnx.Linear(WIDTH, 4 * n, rngs=r), nnx.Linear(4 * n, WIDTH, rngs=r)],
    "gated": lambda n, r: [
        nnx.Linear(WIDTH, 4 * n, rngs=r),
        nnx.Linear(WIDTH, 4 * n, rngs=r),
        nnx.Linear(4 * n, WIDTH, rngs=r),
    ],
    "fused": lambda n, r: [
        nnx.Linear(WIDTH, 8 * n, rngs=r),
        nnx.Linear(4 * n, WIDTH, rngs=r),
    ],
    "qkv": lambda n, r: [
        nnx.Linear(WIDTH, 12 * n, rngs=r),
        nnx.Linear(4 * n, WIDTH, rngs=r),
    ],
    "mix": lambda n, r: [nnx.Linear(LENGTH, 4 * n, rngs=r), nnx.Linear(4 * n, LENGTH, rngs=r)],
    "heads": lambda n, r: [
        nnx.MultiHeadAttention(4, WIDTH, qkv_features=4 * n, decode=False, rngs=r)
    ],
    "norm": lambda n, r: [nnx.LayerNorm(WIDTH, rngs=r)],
    "conv": lambda n, r: [
        nnx.Conv(WIDTH, 4 * n, (3,), rngs=r),
        nnx.Conv(4 * n, WIDTH, (1,), rngs=r),
    ],
    "scan": lambda n, r: [nnx.RNN(nnx.SimpleCell(WIDTH, WIDTH, rngs=r), rngs=r)],
    "scale": lambda n, r: [nnx.Param(jnp.ones((WIDTH,)))],
}


def applied(kind, layers, x):
    if kind == "ffn":
        return x + layers[1](nnx.relu(layers[0](x)))
    if kind == "gated":
        return x + layers[2](nnx.silu(layers[0](x)) * layers[1](x))
    if kind == "fused":
        gate, up = jnp.split(layers[0](x), 2, axis=-1)
        return x + layers[1](nnx.silu(gate) * up)
    if kind == "qkv":
        q, k, v = layers[0](x).reshape(*x.shape[:2], 3, 4, -1).transpose(2, 0, 1, 3, 4)
        made = jax.nn.dot_product_attention(q, k, v)
        return x + layers[1](made.reshape(*x.shape[:2], -1))
    if kind == "mix":
        return x + layers[1](nnx.tanh(layers[0](x.swapaxes(1, 2)))).swapaxes(1, 2)
    if kind == "conv":
        return x + layers[1](nnx.relu(layers[0](x)))
    if kind == "scale":
        return x * layers[0][...]
    return layers[0](x)


def network(parts, order):
    """Parts used one after another; `order` numbers their names, by which Flax sorts arguments."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            for number, (kind, size) in zip(order, parts, strict=True):
                setattr(self, f"part_{number}", nnx.List(PARTS[kind](size, rngs)))

        def __call__(self, x):
            for number, (kind, _) in zip(order, parts, strict=True):
                x = applied(kind, getattr(self, f"part_{number}"), x)
            return x

    return Network


def model_of(parts, order=None):
    def loss(net, batch):
        return jnp.mean((net(batch["x"]) - batch["y"]) ** 2)

    x = jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), "float32")
    order = range(len(parts)) if order is None else order
    return jaxpar.model(network(parts, order), loss, {"x": x, "y": x})


def classes_of(model, order):
    """Which dims of which parts' variables are one, and in what role; their names are no matter."""
    places = {}
    for path, dims in model.dims.items():
        part, _, rest = path.partition("/")
        if not part.startswith("part_"):
            continue
        which = order.index(int(part.removeprefix("part_")))
        for dim, name in enumerate(dims):
            places.setdefault(name, set()).add((which, rest, dim))
    return {(model.roles.get(name), frozenset(found)) for name, found in places.items()}


networks = st.lists(
    st.tuples(st.sampled_from(sorted(PARTS)), st.integers(1, 3)), min_size=1, max_size=4
)
layouts = st.sampled_from(
    [("tensor", "model=4"), ("fsdp", "data=4"), ("hybrid", "data=2,model=2"), ("data", "data=8")]
)


EVERY_CHECK: Any = list(HealthCheck)


@settings(max_examples=15, deadline=None, suppress_health_check=EVERY_CHECK)
@given(networks, st.randoms(use_true_random=False))
@example([("conv", 1), ("heads", 1), ("scan", 1)], None)  # two widths that are equal bargains
def test_dims_are_found_in_whatever_order_arguments_come(parts, random):
    """Which dims are one, and what each is for, is the network's, not the order's."""
    order = list(range(len(parts)))
    found = classes_of(model_of(parts, order), order)
    assert found  # a norm alone has one, and no order
    other = order[::-1] if random is None else random.sample(order, len(order))
    assert classes_of(model_of(parts, other), other) == found


@settings(max_examples=15, deadline=None, suppress_health_check=EVERY_CHECK)
@given(networks)
def test_no_array_has_two_dims_that_are_split_alike(parts):
    """A choice of inner widths is one that every weight can bear."""
    model = model_of(parts)
    for dims in model.dims.values():
        roles = [model.roles[d] for d in dims]
        assert sum(role in ("inner", "heads", "vocabulary") for role in roles) <= 1


@pytest.mark.parametrize("mode", ["auto", "manual"])
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=EVERY_CHECK)
@given(networks, layouts)
def test_a_layout_accepted_is_a_layout_verified(mode, parts, how):
    """Or refused in a sentence; there is no third."""
    strategy, mesh = how
    try:
        layout = jaxpar.lay_out(
            model_of(parts),
            strategy=load_strategy(strategy),
            mesh=jaxpar.MeshShape.parse(mesh),
        )
    except jaxpar.LayoutError as refusal:
        assert "can shard nothing" in str(refusal)
        return

    def make(layout):
        return jaxpar.make_step(layout, mode=mode)

    verdict = jaxpar.verify(layout, hardware=CPU, make=make, steps=1)
    assert verdict.ok, (parts, how, verdict.decisive)
