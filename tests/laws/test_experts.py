"""Experts: who is sent where, what comes back, which collectives; worked out by hand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small import MODES, cpu, small_layout, small_model
from test_traffic import FLOAT, bytes_in, inspected, on_h100, scalars

from jaxpar.case import load_strategy
from jaxpar.core.errors import LayoutError, RequestError
from jaxpar.measures.verify.verify import verify
from jaxpar.models.modules import build
from jaxpar.models.routing import combined, dispatched, places_of, route, statistics
from jaxpar.step.make_step import make_step

pytestmark = pytest.mark.usefixtures("drawn_once")

# Three tokens, their first and second choices: (0, 1), (1, 0), (0, 2).
THREE: Any = np.array([[0.5, 0.375, 0.125], [0.25, 0.75, 0.0], [0.625, 0.0, 0.375]], np.float32)
NONE = 6
"""With two places for each of three experts: the place of who has none."""


def test_first_choices_are_placed_before_second_ones_and_each_by_position():
    """Of two places, expert 0 gives one to token 0, one to token 2, and none to token 1's second.

    By position alone token 1's second choice would come before token 2's first.
    """
    sent = route(THREE, active=2, places=2)
    assert sent.place.tolist() == [[0, 2, 1], [3, NONE, 4]]
    assert sent.choices.tolist() == [3, 2, 1]


def test_the_weights_of_a_tokens_choices_are_shared_out_over_them():
    """Token 0 chose 0.5 and 0.375, so 4/7 and 3/7; who visits one expert keeps its probability."""
    both = route(THREE, active=2, places=2).weight
    expected = [[4 / 7, 0.75, 0.625], [3 / 7, 0.25, 0.375]]
    np.testing.assert_allclose(both, expected, rtol=1e-6)  # two roundings of float32
    assert route(THREE, active=1, places=2).weight.tolist() == [[0.5, 0.75, 0.625]]


def test_the_statistics_of_a_row_are_those_of_their_definitions():
    """Shares 1/2, 1/3, 1/6; mean probabilities 11/24, 9/24, 4/24; one of six choices dropped."""
    found = statistics(THREE, route(THREE, active=2, places=2), 2)
    assert float(found["balance"]) == pytest.approx(3 * (33 + 18 + 4) / 144, rel=1e-6)
    assert float(found["busiest"]) == pytest.approx(3 / 2, rel=1e-6)
    assert float(found["dropped"]) == pytest.approx(1 / 6, rel=1e-6)


def test_tokens_are_in_their_places_and_come_back_weighted():
    """An empty place holds zero, a dropped choice adds nothing, the rest comes back as it was."""
    sent = route(THREE, active=2, places=2)
    x = jnp.array([[1.0], [10.0], [100.0]])
    placed = dispatched(x, sent.place, NONE)
    assert placed[:, 0].tolist() == [1, 100, 10, 1, 100, 0]
    back = combined(placed, sent)
    np.testing.assert_allclose(back, [[1.0], [0.75 * 10], [100.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("capacity", "places"), [(1.0, 8), (1.25, 10), (1.1, 9), (0, 16), (100.0, 16), (0.01, 1)]
)
def test_places_are_a_multiple_of_the_even_share(capacity, places):
    """Sixteen tokens visit two of four experts: 8 each, rounded up; never more than tokens."""
    assert places_of(16, experts=4, active=2, capacity=capacity) == places


@pytest.mark.parametrize("gated", [False, True])
def test_without_capacity_the_mixture_is_the_dense_sum_over_experts(gated):
    """Nobody dropped: every token is the sum of its two likeliest experts, each run on all tokens.

    The reference is numpy in float64 and shares no line with the model.
    """
    model = small_model("moe", capacity=0.0, gated=gated, activation="relu", layers=1)
    module: Any = build(model, 0)
    block = module.blocks
    weights = {
        name: np.asarray(getattr(block, name)[0], float) for name in ("router", "up", "down")
    }
    x = np.random.default_rng(0).standard_normal((2, 16, 32))

    scores = x @ weights["router"] * 30  # apart, so that rounding does not choose
    probability = np.exp(scores - scores.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    inner = np.einsum("bsd,edcf->ebscf", x, weights["up"])
    inner = np.maximum(inner[..., 0, :], 0) * (inner[..., 1, :] if gated else 1)
    outputs = np.einsum("ebsf,efd->ebsd", inner, weights["down"])
    expected = np.zeros_like(x)
    for b, s in np.ndindex(2, 16):
        for e in np.argsort(probability[b, s])[-2:]:
            share = probability[b, s, e] / np.sort(probability[b, s])[-2:].sum()
            expected[b, s] += share * outputs[e, b, s]

    single = jax.tree.map(lambda leaf: leaf[0], block)
    single.router[...] = single.router[...] * 30
    got, found = single._mixed(jnp.asarray(x, jnp.float32))
    assert float(found["dropped"].max()) == 0
    # Sums of 64 float32 products: a few roundings of 6e-8.
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_loss_holds_the_auxiliary_loss_of_every_layer():
    """Loss = next-token loss + coefficient x layers x the mean layer's balance, in one Mean."""
    model = small_model("moe", balance=0.5)
    loss_of = jax.jit(model.loss)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 32, (4, 16), np.int32),
        "targets": rng.integers(0, 32, (4, 16), np.int32),
        "weight": rng.integers(0, 2, (4, 16)).astype(np.float32),
    }
    module = build(model, 0)
    loss, metrics = loss_of(module, batch)
    expected = metrics["next_token"].value + 0.5 * 2 * metrics["balance"].value
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-6)
    halves = [loss_of(module, jax.tree.map(lambda x, i=i: x[i::2], batch))[0].total for i in (0, 1)]
    assert float(sum(halves)) == pytest.approx(float(loss.total), rel=1e-6)


def test_an_axis_that_two_dims_want_goes_to_the_one_named_first():
    """Rows first the tokens are where their rows are, experts first where their experts are."""
    layout = small_layout("moe", "expert+data", "data=2,model=4")
    places = layout.place_of
    assert places(("batch", "experts", "places")) == P(("data", "model"), None, None)
    assert places(("experts", "batch", "places")) == P("model", "data", None)


def test_a_model_without_experts_or_with_too_few_is_refused():
    """Both in a sentence: what is missing, or the two sizes."""
    with pytest.raises(LayoutError, match="model 'mlp' has no dim in role 'experts', which strat"):
        small_layout("mlp", "expert", "model=4")
    with pytest.raises(LayoutError, match="'experts' has size 6 .* 4 devices"):
        small_layout("moe", "expert", "model=4", experts=6)
    with pytest.raises(LayoutError, match="both want mesh axis 'model'"):
        load_strategy("expert+tensor")
    with pytest.raises(RequestError, match="active=3 experts a token of experts=2"):
        small_model("moe", active=3, experts=2)


@pytest.mark.parametrize("mode", MODES)
def test_experts_beside_fully_sharded_data_parallelism_compute_the_same(mode):
    """Rows over data x model, experts over model, weights sharded over data, all at once."""
    layout = small_layout(
        "moe", "expert+fsdp", "data=2,model=4", layers=1, gated=True, vocabulary=64
    )
    verdict = verify(layout, hardware=cpu(), make=partial(make_step, mode=mode), steps=2)
    assert verdict.ok, verdict
    assert verdict.decisive.error < 1e-12


def placed_bytes(layout) -> int:
    """Bytes of one device's tokens in their places: rows x experts x places x width."""
    c, rows = layout.model.config, layout.model.batch_size // layout.row_shares
    return rows * c.experts * 10 * c.width * FLOAT  # 1.25 x 2 x 16 / 4 places


@pytest.mark.parametrize(
    ("hardware", "mode", "remat", "times"),
    [
        ("cpu", "auto", "none", 4),
        ("cpu", "manual", "none", 4),
        ("cpu", "auto", "full", 6),
        on_h100("auto", "none", 4),
    ],
)
def test_tokens_travel_to_their_experts_and_back(hardware, mode, remat, times):
    """Over model: two all-to-alls a layer there and two back, and two more where forward is redone.

    Beside them only the sums of what is no expert, whole: experts' gradients are summed over data.
    """
    inspection = inspected(
        "moe", "expert+data", hardware=hardware, mode=mode, mesh="data=2,model=2", remat=remat
    )
    layout = inspection.layout
    assert inspection.faults == ()
    expected = times * layout.model.config.layers * placed_bytes(layout)
    assert (
        bytes_in(inspection, "all-to-all", "model")
        == bytes_in(inspection, "all-to-all")
        == expected
    )
    shared = [a.whole_bytes for a in layout.parameters.values() if "experts" not in a.dims]
    more = bytes_in(inspection, "all-reduce", "model") - sum(shared)
    assert 0 < more <= scalars(inspection)
    experts = [a.whole_bytes for a in layout.parameters.values() if "experts" in a.dims]
    alone = bytes_in(inspection, "all-reduce", "data") - bytes_in(inspection, "all-reduce", "model")
    assert alone == sum(experts) // 2


@pytest.mark.parametrize(
    ("hardware", "mesh"), [("cpu", "data=2,model=4"), on_h100("data=4,model=2")]
)
def test_rows_of_a_table_travel_over_one_axis_of_two(hardware, mesh):
    """The rows are sharded over data and model, the table's width over data: rows travel over data,
    there and back, and no device's rows are permuted with another's."""
    found = inspected("moe", "expert+fsdp", hardware=hardware, mesh=mesh, layers=1, vocabulary=64)
    layout = found.layout
    assert found.faults == ()
    rows = layout.model.batch_size // layout.row_shares * layout.model.config.sequence
    travelled = 2 * rows * layout.model.config.width * FLOAT
    assert bytes_in(found, "all-to-all", "data") == travelled
    assert bytes_in(found, "all-to-all", "model") == 4 * placed_bytes(layout)
    assert bytes_in(found, "collective-permute") == 0
